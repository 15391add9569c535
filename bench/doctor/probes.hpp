// Reading what the system says about itself. Every probe is guarded: what can't be found is an empty text.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace mixlane::bench {

// The whole file, or "" if it can't be read.
std::string probe_file(const std::filesystem::path& path);
// The value behind "key :" or "key=" in the first line that starts so, without quotes.
std::string value_of(std::string_view text, std::string_view key);

// Of /proc/cpuinfo: "Intel(R) Xeon(R) Processor"; and, of its flags, those that the CPU kernels' speed depends on.
std::string cpu_model(std::string_view cpuinfo);
std::string instruction_sets(std::string_view cpuinfo);

// "23.5 GiB"
std::string gibibytes(double bytes);
// Of /proc/meminfo, in bytes; 0 if there is no such line.
double meminfo_bytes(std::string_view meminfo, std::string_view key);
// Of cgroup v2's cpu.max, "150000 100000": cores the group may use; 0 = no limit.
double cgroup_cores(std::string_view cpu_max);
int usable_cores();

// "2.6.3 (loaded)", "2.6.3 (installed, not loaded)", or "" where the library is not installed.
std::string onednn_version();
// The path of mpirun in the usual places.
std::string mpirun_path();

}  // namespace mixlane::bench
