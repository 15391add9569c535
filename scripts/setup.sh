# Set-up shared by quickstart.sh, test.sh and .ci/run; sourced from the root of the tree.

# What each purpose needs, as the distribution names it, with the reason that is printed.
packages_for() {
  cat <<'LIST'
g++               the C++20 compiler
cmake             the build system
ninja-build       the build tool
libfmt-dev        text formatting
nlohmann-json3-dev  JSON: results and the model catalogue
libcli11-dev      the command line
libdnnl-dev       oneDNN: matrix products of the experts
LIST
  [ "$1" = run ] && return
  cat <<'LIST'
libgtest-dev      GoogleTest
openmpi-bin       mpirun: the test that starts ranks with it
LIST
  [ "$1" = test ] && return
  cat <<'LIST'
clang             the fuzz targets
libclang-rt-dev   libFuzzer and its run-time
LIST
}

# Installs the packages of a purpose (run, test, ci) that are missing: as root, or through sudo.
install_packages() {
  local purpose=$1 missing=() package reason
  while read -r package reason; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' && continue
    printf 'installing %-20s %s\n' "$package" "$reason"
    missing+=("$package")
  done <<<"$(packages_for "$purpose")"
  [ ${#missing[@]} -eq 0 ] && return

  command -v apt-get >/dev/null || {
    echo "this script installs with apt-get (Debian 12, Ubuntu 24.04 and later); here, install these yourself: ${missing[*]}" >&2
    exit 1
  }
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
      echo "not root and no sudo; run as root: apt-get install ${missing[*]}" >&2
      exit 1
    }
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# build PRESET TARGET [cmake option...]: configures, which is quick when it is done already, and builds.
build() {
  local preset=$1 target=$2
  shift 2
  cmake --preset "$preset" "$@" >/dev/null
  cmake --build "build/$preset" --target "$target"
}
