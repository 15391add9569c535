#include "doctor/environment.hpp"

#include <gnu/libc-version.h>
#include <sys/utsname.h>

#include <nlohmann/json.hpp>

#include "core/format.hpp"
#include "doctor/probes.hpp"
#include "mixlane/version.hpp"
#include "mixlane_commit.hpp"

namespace mixlane::bench {
namespace {

using Environment = std::map<std::string, std::string>;

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

// "always [madvise] never" -> "madvise"
std::string chosen(const std::string& text) {
  const size_t open = text.find('['), close = text.find(']');
  return open < close && close != std::string::npos ? text.substr(open + 1, close - open - 1) : "";
}

void capture_system(Environment& env) {
  utsname system{};
  if (::uname(&system) == 0) {
    env["host"] = system.nodename;
    env["kernel"] = fmt::format("{} {} {}", system.sysname, system.release, system.machine);
  }
  env["os"] = value_of(probe_file("/etc/os-release"), "PRETTY_NAME");
  const std::string load = probe_file("/proc/loadavg");
  env["load"] = load.substr(0, load.find(' '));
}

void capture_processor(Environment& env) {
  const std::string cpuinfo = probe_file("/proc/cpuinfo");
  env["cpu"] = cpu_model(cpuinfo);
  env["cores"] = std::to_string(usable_cores());
  const double limit = cgroup_cores(probe_file("/sys/fs/cgroup/cpu.max"));
  env["cgroup_cores"] = limit > 0 ? fmt::format("{:.1f}", limit) : "none";
  env["instruction_sets"] = instruction_sets(cpuinfo);
  env["l3_cache"] = first_line(probe_file("/sys/devices/system/cpu/cpu0/cache/index3/size"));
  env["virtual_machine"] = value_of(cpuinfo, "flags").find("hypervisor") != std::string::npos ? "yes" : "no";
  const std::string governor = first_line(probe_file("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"));
  env["governor"] = governor.empty() ? "none" : governor;
}

void capture_memory(Environment& env) {
  const std::string meminfo = probe_file("/proc/meminfo");
  if (const double total = meminfo_bytes(meminfo, "MemTotal")) env["memory"] = gibibytes(total);
  if (const double available = meminfo_bytes(meminfo, "MemAvailable")) env["memory_available"] = gibibytes(available);
  env["huge_pages"] = chosen(probe_file("/sys/kernel/mm/transparent_hugepage/enabled"));
}

void capture_build(Environment& env) {
#if defined(__clang__)
  env["compiler"] = fmt::format("clang {}.{}.{}", __clang_major__, __clang_minor__, __clang_patchlevel__);
#else
  env["compiler"] = fmt::format("gcc {}.{}.{}", __GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__);
#endif
  env["build"] = MIXLANE_BUILD_TYPE;
  env["mixlane"] = MIXLANE_VERSION;
  env["commit"] = MIXLANE_COMMIT;
}

void capture_libraries(Environment& env) {
  const std::string onednn = onednn_version(), mpirun = mpirun_path();
  env["onednn"] = onednn.empty() ? "none" : onednn;
  env["openmpi"] = mpirun.empty() ? "none" : mpirun;
  env["libc"] = fmt::format("glibc {} (built for {}.{})", gnu_get_libc_version(), __GLIBC__, __GLIBC_MINOR__);
  env["fmt"] = fmt::format("{}.{}.{}", FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100);
  env["json"] =
      fmt::format("{}.{}.{}", NLOHMANN_JSON_VERSION_MAJOR, NLOHMANN_JSON_VERSION_MINOR, NLOHMANN_JSON_VERSION_PATCH);
}

}  // namespace

Environment capture_environment() {
  Environment env = {{"host", ""}, {"kernel", ""}, {"memory", ""}, {"memory_available", ""}};
  capture_system(env);
  capture_processor(env);
  capture_memory(env);
  capture_build(env);
  capture_libraries(env);
  for (auto& [key, value] : env)
    if (value.empty()) value = "unknown";
  return env;
}

}  // namespace mixlane::bench
