#include "command.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/error.hpp"
#include "core/format.hpp"
#include "doctor/environment.hpp"
#include "doctor/examine.hpp"
#include "doctor/gpu_survey.hpp"
#include "doctor/peaks.hpp"
#include "doctor/probes.hpp"
#include "results/files.hpp"

namespace mixlane::bench {
namespace {

struct DoctorOptions {
  int ranks = 4;
  double seconds = 4;
  std::string json;
};

// Ranks as threads: they share memory and cores exactly as rank processes do, and nothing has to be started.
Peaks measure_with_threads(const DoctorOptions& options) {
  const auto group = make_thread_group(options.ranks);
  std::vector<Peaks> peaks(group.size());
  std::vector<std::exception_ptr> errors(group.size());
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < group.size(); ++rank)
    threads.emplace_back([&, rank] {
      try {
        Context context({.num_threads = std::max(1, usable_cores() / options.ranks)});
        peaks[rank] = measure_peaks(*group[rank], context, {.seconds = options.seconds});
      } catch (...) {
        errors[rank] = std::current_exception();
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
  return peaks.front();
}

nlohmann::ordered_json to_json(const std::map<std::string, std::string>& environment, const Peaks& peaks,
                               const GpuSurvey& gpus, const std::vector<Finding>& findings) {
  nlohmann::ordered_json json;
  json["environment"] = environment;
  json["peaks"] = to_json(peaks);
  json.update(to_json(gpus));
  json["findings"] = nlohmann::ordered_json::array();
  for (const Finding& f : findings)
    json["findings"].push_back({{"subject", f.subject}, {"text", f.text}, {"level", name(f.level)}, {"advice", f.advice}});
  return json;
}

int run_doctor(const DoctorOptions& options) {
  const auto environment = capture_environment();  // first: measuring would show up in the load
  const Peaks peaks = measure_with_threads(options);
  const GpuSurvey gpus = survey_gpus(Env::read(), {.seconds = options.seconds / 4});
  std::vector<Finding> findings = examine(environment, peaks);
  for (Finding& finding : examine(gpus)) findings.push_back(std::move(finding));
  if (!options.json.empty()) write_output(options.json, to_json(environment, peaks, gpus, findings).dump(1) + "\n");
  if (options.json != "-") fmt::print("{}", to_text(findings));
  const bool failed = std::any_of(findings.begin(), findings.end(), [](const Finding& f) { return f.level == Level::fail; });
  return failed ? kExitFailed : kExitOk;
}

}  // namespace

void add_doctor(CLI::App& app, Action& action) {
  auto options = std::make_shared<DoctorOptions>();
  CLI::App* command = app.add_subcommand("doctor", "What this machine has, and its measured peaks");
  command->add_option("--ranks", options->ranks, "Ranks that measure at once, as threads")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  command->add_option("--seconds", options->seconds, "Measuring time for all peaks of the CPU; a GPU takes a quarter of it")
      ->check(CLI::Range(0.1, 600.0))
      ->capture_default_str();
  command->add_option("--json", options->json, "Write everything as JSON to this file; - is standard output");
  command->footer("Each line ends in ok, note, WARN or FAIL and what to do. Exit code 1 if any line says FAIL.");
  command->callback([options, &action] { action = [options] { return run_doctor(*options); }; });
}

}  // namespace mixlane::bench
