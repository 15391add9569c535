#!/usr/bin/env bash
# Installs what is missing, builds Mixlane, runs the default benchmark of a MoE layer on four CPU ranks and says where
# its report lies. Run again, it repeats only what is not done. Arguments go to `mixlane bench`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/setup.sh

install_packages run
build cpu mixlane_program -D MIXLANE_TESTS=OFF
exec build/cpu/bench/mixlane bench "$@"
