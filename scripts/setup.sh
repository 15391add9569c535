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

# What compiles and links the kernels for AMD GPUs.
hip_packages() {
  cat <<'LIST'
clang-19          the HIP compiler
clang-tools-19    clang-offload-bundler: code of several GPUs in one object
lld-19            the linker of device code
rocm-device-libs  AMD's device libraries
libamdhip64-dev   HIP's headers and run-time
LIST
}

is_installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }

# apt-get as root, or through sudo.
apt() {
  local as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >/dev/null
}

# Reads lines of package and reason; installs what is missing.
install_listed() {
  local missing=() package reason
  while read -r package reason; do
    is_installed "$package" && continue
    printf 'installing %-20s %s\n' "$package" "$reason"
    missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return

  command -v apt-get >/dev/null || {
    echo "this script installs with apt-get (Debian 12, Ubuntu 24.04 and later); here, install these yourself: ${missing[*]}" >&2
    exit 1
  }
  [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null || {
    echo "not root and no sudo; run as root: apt-get install ${missing[*]}" >&2
    exit 1
  }
  apt update && apt install -y --no-install-recommends "${missing[@]}" || exit 1
}

# Installs the packages of a purpose (run, test, ci) that are missing.
install_packages() { install_listed < <(packages_for "$1"); }

# Installs what HIP needs. False, with a line that says why, where the distribution does not have it. After
# install_packages, which has brought the lists of packages up to date if anything was missing.
install_hip() {
  local package reason
  while read -r package reason; do
    is_installed "$package" || apt-cache show --no-all-versions "$package" >/dev/null 2>&1 || {
      echo "HIP is skipped: no package $package ($reason) is offered here, as Debian 12 does; is apt-get update due?"
      return 1
    }
  done < <(hip_packages)
  install_listed < <(hip_packages)
}

# build PRESET TARGET [cmake option...]: configures, which is quick when it is done already, and builds.
build() {
  local preset=$1 target=$2
  shift 2
  cmake --preset "$preset" "$@" >/dev/null
  cmake --build "build/$preset" --target "$target"
}
