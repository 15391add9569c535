#include "tune/outcome.hpp"

#include <ctime>

#include "core/format.hpp"
#include "doctor/environment.hpp"
#include "doctor/probes.hpp"
#include "gpu/runtime.hpp"
#include "io/tuned.hpp"
#include "results/files.hpp"

namespace mixlane::bench {
namespace {

// "580.159.04", from the kernel module; else the version of the API that the driver offers.
std::string driver_version(const gpu::DeviceProperties& properties) {
  const std::string module = probe_file("/sys/module/nvidia/version");
  const std::string api = fmt::format("API {}.{}", properties.driver_version / 1000, properties.driver_version % 1000 / 10);
  return module.empty() ? api : fmt::format("{} ({})", module.substr(0, module.find('\n')), api);
}

}  // namespace

TuningRun describe_run(const TuneOptions& options) {
  const gpu::DeviceProperties properties = gpu::properties(options.device);
  const auto environment = capture_environment();
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  char date[32] = "";
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return {.date = date,
          .gpu = properties.name,
          .driver = driver_version(properties),
          .commit = environment.at("commit"),
          .command = options.command()};
}

void say(const std::string& line) { fmt::print(stderr, "{}\n", line); }

void store(const TuneOptions& options, const TuneSpace& space, const TunedTable& fresh) {
  std::filesystem::path file = options.out;
  if (file.extension() != ".json") file /= tuned_file_name(fresh);
  std::error_code error;
  TunedTable table = fresh;
  if (std::filesystem::exists(file, error)) {
    TunedTable old = read_tuned(file);
    if (old.stage == space.stage) old = split_ranges(std::move(old), space);
    table = merge_tuned(std::move(old), fresh, options.replace);
  }
  const size_t num_keys = table.entries.size();
  if (space.in_ranges) table = join_ranges(std::move(table), space);
  write_text_file(file, tuned_json(table));
  fmt::print("wrote {}: {} keys, {} of them measured now\n", file.string(), num_keys, fresh.entries.size());
}

}  // namespace mixlane::bench
