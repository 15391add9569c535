#include "command.hpp"

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "compare/compare.hpp"
#include "core/error.hpp"
#include "core/format.hpp"
#include "results/collect.hpp"
#include "results/files.hpp"

namespace mixlane::bench {
namespace {

struct CompareOptions {
  std::string a, b, threshold = "2%", json;
  FailOn fail_on = FailOn::slow;
};

// "2%", "2 %" or "0.02" -> 0.02; NaN for anything else or outside 0..1.
double relative(const std::string& text) {
  char* end = nullptr;
  double value = std::strtod(text.c_str(), &end);
  if (end == text.c_str()) return std::nan("");
  const std::string rest(end);
  if (rest == "%" || rest == " %") {
    value /= 100;
  } else if (!rest.empty()) {
    return std::nan("");
  }
  return value >= 0 && value <= 1 ? value : std::nan("");
}

std::string check_threshold(const std::string& text) {
  return std::isnan(relative(text)) ? fmt::format("'{}' is not a share from 0% to 100%, as in 2% or 0.02", text) : "";
}

std::vector<ResultFile> load(const std::string& path) {
  Collection found = collect_results(path);
  for (const std::string& warning : found.warnings) fmt::print(stderr, "mixlane: {}\n", warning);
  if (found.files.empty()) fail(ErrorCode::io_error, "no readable result in {}", path);
  return std::move(found.files);
}

int run_compare(const CompareOptions& options) {
  const CompareResult result = compare_results(load(options.a), load(options.b), relative(options.threshold));
  const int code = compare_exit_code(result, options.fail_on);
  if (!options.json.empty()) write_output(options.json, to_json(result).dump(1) + "\n");
  if (options.json != "-") fmt::print("{} exit {}\n", to_text(result), code);
  return code;
}

}  // namespace

void add_compare(CLI::App& app, Action& action) {
  auto options = std::make_shared<CompareOptions>();
  CLI::App* command = app.add_subcommand("compare", "Did it get slower? Two result files or folders of runs, row by row");
  command->add_option("A", options->a, "The runs to compare with")->required();
  command->add_option("B", options->b, "The runs in question")->required();
  command->add_option("--threshold", options->threshold, "Changes up to this size don't count")
      ->check(check_threshold)
      ->capture_default_str();
  const std::map<std::string, FailOn> choices = {
      {"none", FailOn::none}, {"slow", FailOn::slow}, {"ambg", FailOn::ambiguous}};
  command
      ->add_option("--fail-on", options->fail_on, "What ends with an exit code other than 0: none, slow (default) or ambg")
      ->transform(CLI::CheckedTransformer(choices, CLI::ignore_case));
  command->add_option("--json", options->json, "Write the rows as JSON to this file; - is standard output");
  command->footer(
      "FAST, SLOW: the 95 % interval of the ratio of medians lies beyond the threshold; SAME: within; AMBG: both are\n"
      "possible, measure longer. ????: not comparable, with the reason. Of several runs of a cell the newest counts.\n"
      "Exit codes: 1 a row is SLOW or a result became wrong, 2 usage, 3 some row is not comparable, 0 otherwise.");
  command->callback([options, &action] { action = [options] { return run_compare(*options); }; });
}

}  // namespace mixlane::bench
