#include "core/memory_budget.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>

#include "core/format.hpp"

namespace mixlane {
namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

// A file that holds one number; "max" and anything unreadable is `fallback`.
int64_t number_in(const std::filesystem::path& file, int64_t fallback) {
  std::ifstream in(file);
  int64_t value = 0;
  return in >> value ? value : fallback;
}

// The number behind `key` in a file of "key value" lines.
int64_t number_at(const std::filesystem::path& file, std::string_view key, int64_t fallback) {
  std::ifstream in(file);
  std::string word;
  int64_t value = 0;
  for (std::string line; std::getline(in, line);) {
    std::istringstream fields(line);
    if (fields >> word >> value && word == key) return value;
  }
  return fallback;
}

struct CgroupFiles {
  const char* mount;
  const char* limit;
  const char* usage;
};
constexpr CgroupFiles kV1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"};
constexpr CgroupFiles kV2 = {"/sys/fs/cgroup", "memory.max", "memory.current"};

// The tightest of a cgroup and those above it. Inside a container the path may not exist; its root then is the container's.
int64_t free_in_cgroup(const CgroupFiles& files, const std::string& path) {
  int64_t least = kUnlimited;
  std::filesystem::path relative = std::filesystem::path(path).relative_path();
  while (true) {
    const auto folder = std::filesystem::path(files.mount) / relative;
    const int64_t limit = number_in(folder / files.limit, kUnlimited);
    if (limit < kUnlimited) {
      const int64_t reclaimable = number_at(folder / "memory.stat", "inactive_file", 0);
      least = std::min(least, std::max<int64_t>(0, limit - number_in(folder / files.usage, 0) + reclaimable));
    }
    if (relative.empty()) return least;
    relative = relative.parent_path();
  }
}

}  // namespace

int64_t free_memory_bytes() {
  const int64_t available_kib = number_at("/proc/meminfo", "MemAvailable:", -1);
  int64_t least = available_kib < 0 ? kUnlimited : available_kib * 1024;
  std::ifstream in("/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {  // hierarchy:controllers:path
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = fmt::format(",{},", line.substr(first + 1, second - first - 1));
    const std::string path = line.substr(second + 1);
    if (controllers == ",,") least = std::min(least, free_in_cgroup(kV2, path));
    if (controllers.find(",memory,") != std::string::npos) least = std::min(least, free_in_cgroup(kV1, path));
  }
  return least;
}

std::string memory_shortage(int64_t bytes, std::string_view what) {
  const int64_t free = free_memory_bytes();
  if (bytes <= free) return "";
  return fmt::format(
      "{} needs {} MiB of shared memory for all ranks, {} MiB are free; use fewer tokens, a smaller capacity or "
      "fewer ranks",
      what, (bytes >> 20) + 1, free >> 20);
}

}  // namespace mixlane
