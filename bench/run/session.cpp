#include "run/session.hpp"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "core/error.hpp"
#include "results/stamp.hpp"

namespace mixlane::bench {
namespace {

constexpr std::string_view kResultsPrefix = "results_";

// Stamps of the sweeps below `out`, latest first.
std::vector<std::string> stamps(const std::filesystem::path& out) {
  std::vector<std::string> found;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(out, ignored))
    if (const std::string name = entry.path().filename().string(); entry.is_directory() && name.starts_with(kResultsPrefix))
      found.push_back(name.substr(kResultsPrefix.size()));
  std::sort(found.rbegin(), found.rend());
  return found;
}

std::string entry(const std::map<std::string, std::string>& map, const std::string& key) {
  const auto found = map.find(key);
  return found == map.end() ? "" : found->second;
}

}  // namespace

void require_writable(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (!error) {
    std::string probe = (folder / ".mixlane_XXXXXX").string();
    const int fd = mkstemp(probe.data());
    if (fd >= 0) {
      close(fd);
      unlink(probe.c_str());
      return;
    }
    error = std::error_code(errno, std::generic_category());
  }
  fail(ErrorCode::io_error, "can't write to the output folder {}: {}; give another one with --out", folder.string(),
       error.message());
}

ResultFile empty_result(const BenchOptions& options, const std::string& stamp, QuantFormat format) {
  ResultFile file;
  file.stamp = stamp;
  file.command = options.command;
  file.model = options.shape.name;
  file.quant = name(format);
  file.unverified = options.shape.unverified;
  file.ranks = options.num_ranks;
  file.seed = options.seed;
  file.device = options.device;
  return file;
}

std::string interrupted_stamp(const BenchOptions& options, const std::map<std::string, std::string>& environment) {
  for (const std::string& stamp : stamps(options.out)) {
    bool ours = false, complete = true;
    for (const QuantFormat format : options.formats) {
      const auto path = result_path(options.out, empty_result(options, stamp, format));
      if (!std::filesystem::exists(path)) {
        complete = false;
        continue;
      }
      ResultFile file;
      try {
        file = read_result_file(path);
      } catch (const Error&) {
        continue;  // not ours: we write whole files
      }
      if (file.command != options.command || entry(file.environment, "commit") != entry(environment, "commit") ||
          entry(file.environment, "host") != entry(environment, "host"))
        continue;
      ours = true;
      complete = complete && file.complete;
    }
    if (ours) return complete ? "" : stamp;
  }
  return "";
}

ResultFile stored_or(const BenchOptions& options, ResultFile fresh) {
  const auto path = result_path(options.out, fresh);
  return std::filesystem::exists(path) ? read_result_file(path) : fresh;
}

const Record* find_record(const ResultFile& file, int tokens, const std::string& workload) {
  for (const Record& record : file.records)
    if (record.tokens == tokens && record.workload == workload) return &record;
  return nullptr;
}

std::filesystem::path trace_folder(const BenchOptions& options, const ResultFile& file) {
  return options.out / ("traces_" + file.stamp) / result_path(options.out, file).stem();
}

std::filesystem::path log_path(const BenchOptions& options, const std::string& stamp) {
  return options.out / fmt::format("sweep_{}.log", stamp);
}

std::string unused_stamp(const BenchOptions& options) {
  std::string stamp = current_stamp();
  while (std::filesystem::exists(log_path(options, stamp))) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    stamp = current_stamp();
  }
  return stamp;
}

}  // namespace mixlane::bench
