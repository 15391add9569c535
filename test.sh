#!/usr/bin/env bash
# Installs what is missing, builds everything and runs all tests. Arguments go to ctest: ./test.sh -R Align
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/setup.sh

install_packages test
build cpu all -D MIXLANE_TESTS=ON
exec ctest --preset cpu -j "$(nproc)" "$@"
