#include "doctor/probes.hpp"

#include <dlfcn.h>
#include <sched.h>

#include <array>
#include <charconv>
#include <fstream>
#include <iterator>
#include <sstream>
#include <thread>

#include "core/format.hpp"

namespace mixlane::bench {
namespace {

double number(std::string_view text) {
  // from_chars for doubles is missing in older standard libraries; these files hold whole numbers.
  int64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return static_cast<double>(value);
}

}  // namespace

std::string probe_file(const std::filesystem::path& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string value_of(std::string_view text, std::string_view key) {
  std::istringstream lines{std::string(text)};
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(key)) continue;
    size_t at = line.find_first_not_of(" \t", key.size());
    if (at == std::string::npos || (line[at] != ':' && line[at] != '=')) continue;
    at = line.find_first_not_of(" \t\"", at + 1);
    if (at == std::string::npos) return "";
    return line.substr(at, line.find_last_not_of(" \t\r\"") - at + 1);
  }
  return "";
}

std::string cpu_model(std::string_view cpuinfo) {
  for (const char* key : {"model name", "Model", "CPU part"})
    if (std::string value = value_of(cpuinfo, key); !value.empty()) return value;
  return "";
}

std::string instruction_sets(std::string_view cpuinfo) {
  const std::string flags = " " + value_of(cpuinfo, "flags") + value_of(cpuinfo, "Features") + " ";
  std::string found;
  for (const char* name : {"sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
                           "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm", "sve", "sve2"})
    if (flags.find(fmt::format(" {} ", name)) != std::string::npos) found += (found.empty() ? "" : " ") + std::string(name);
  return found;
}

std::string gibibytes(double bytes) { return fmt::format("{:.1f} GiB", bytes / (1 << 30)); }

double meminfo_bytes(std::string_view meminfo, std::string_view key) { return number(value_of(meminfo, key)) * 1024; }

double cgroup_cores(std::string_view cpu_max) {
  const size_t space = cpu_max.find(' ');
  if (space == std::string_view::npos) return 0;
  const double quota = number(cpu_max.substr(0, space)), period = number(cpu_max.substr(space + 1));
  return period > 0 ? quota / period : 0;  // "max" is no number: 0
}

int usable_cores() {
  cpu_set_t cores;
  if (::sched_getaffinity(0, sizeof cores, &cores) == 0) return CPU_COUNT(&cores);
  return static_cast<int>(std::thread::hardware_concurrency());  // more cores than the set has room for
}

OneDnn open_onednn() {
  constexpr std::array kLibraries = {"libdnnl.so.3", "libdnnl.so.2"};
  for (const char* library : kLibraries)
    if (void* handle = ::dlopen(library, RTLD_LAZY | RTLD_NOLOAD)) return {handle, true};
  for (const char* library : kLibraries)
    if (void* handle = ::dlopen(library, RTLD_LAZY | RTLD_LOCAL)) return {handle, false};
  return {};
}

std::string onednn_version() {
  struct Version {  // the first members of dnnl_version_t, the same in 2.x and 3.x
    int major, minor, patch;
  };
  const OneDnn library = open_onednn();
  if (!library.handle) return "";
  const auto version = reinterpret_cast<const Version* (*)()>(::dlsym(library.handle, "dnnl_version"));
  if (!version) return "";
  return fmt::format("{}.{}.{} ({})", version()->major, version()->minor, version()->patch,
                     library.was_loaded ? "loaded" : "installed, not loaded");
}

std::string mpirun_path() {
  std::error_code ignored;
  for (const char* path : {"/usr/bin/mpirun", "/usr/local/bin/mpirun", "/opt/openmpi/bin/mpirun"})
    if (std::filesystem::exists(path, ignored)) return path;
  return "";
}

}  // namespace mixlane::bench
