#include <algorithm>

#include "core/env.hpp"
#include "core/error.hpp"
#include "doctor/probes.hpp"
#include "run/options.hpp"
#include "run/variants.hpp"

namespace mixlane::bench {
namespace {

constexpr int kDefaultRanks = 4;

// The index of `value` among `valid`, or invalid_argument naming the option and what it takes.
int index_of(std::string_view option, const std::string& value, std::initializer_list<std::string_view> valid) {
  const auto found = std::find(valid.begin(), valid.end(), value);
  if (found == valid.end())
    fail(ErrorCode::invalid_argument, "{} '{}' is unknown; valid ones: {}", option, value, fmt::join(valid, ", "));
  return static_cast<int>(found - valid.begin());
}

int resolve_ranks(const BenchArguments& arguments) {
  const LaunchInfo launch = launch_info();
  if (launch.source == "none") return arguments.ranks.value_or(kDefaultRanks);
  if (arguments.ranks && *arguments.ranks != launch.num_ranks)
    fail(ErrorCode::invalid_argument, "--ranks {} contradicts {}, which started {} ranks; leave --ranks out",
         *arguments.ranks, launch.source, launch.num_ranks);
  return launch.num_ranks;
}

// --fresh is not part of what a resumed sweep must repeat.
std::string command_text(const std::vector<std::string>& command_line) {
  std::string text = "mixlane";
  for (size_t i = 1; i < command_line.size(); ++i)
    if (command_line[i] != "--fresh") text += " " + command_line[i];
  return text;
}

void check_recorded(const BenchArguments& a) {
  if (a.hidden.empty() && a.logits.empty()) return;
  if (a.has_workload)
    fail(ErrorCode::invalid_argument,
         "--workload makes up the routing, --hidden and --logits replay a recorded one; give "
         "one or the other");
  if (a.logits.empty() && a.checkpoint.empty())
    fail(ErrorCode::invalid_argument,
         "--hidden alone says nothing of the routing; add --logits FILE, or --checkpoint DIR "
         "whose router makes them");
}

template <class T>
void require_distinct(std::string_view option, std::vector<T> values) {
  std::sort(values.begin(), values.end());
  const auto twice = std::adjacent_find(values.begin(), values.end());
  if (twice != values.end()) fail(ErrorCode::invalid_argument, "{} has {} twice", option, *twice);
}

}  // namespace

int BenchOptions::max_tokens() const { return *std::max_element(tokens.begin(), tokens.end()); }

std::vector<std::string> BenchOptions::workload_names() const {
  if (recorded()) return {"recorded"};
  std::vector<std::string> names;
  for (const Workload& each : workloads) names.push_back(to_string(each));
  return names;
}

SamplePlan BenchOptions::sample_plan() const {
  SamplePlan plan;
  plan.min_time_s = min_time_s;
  plan.max_time_s = max_time_s;
  plan.target = target;
  plan.cold = cache == "cold";
  return plan;
}

BenchOptions resolve(const BenchArguments& arguments, const std::vector<std::string>& command_line) {
  BenchOptions options;
  static_cast<BenchArguments&>(options) = arguments;
  const Env env = Env::read();
  options.shape = find_model(env, options.model);
  for (const std::string& quant : options.quant) options.formats.push_back(quant_format_from_name(quant));
  check_recorded(arguments);
  if (options.hidden.empty() && options.logits.empty())
    for (const std::string& text : options.workload) options.workloads.push_back(parse_workload(text));
  require_distinct("--quant", options.quant);
  require_distinct("--tokens", options.tokens);
  require_distinct("--workload", options.workload_names());
  options.min_time_s = std::min(options.min_time_s, options.max_time_s);
  index_of("--device", options.device, {"cpu"});
  index_of("--cache", options.cache, {"hot", "cold"});
  if (!options.json.empty()) index_of("--json", options.json, {"-"});
  for (QuantFormat format : options.formats) wire_format(options, format);
  combine_wire(options);
  options.variant_of = parse_variants(options.variants);
  options.num_ranks = resolve_ranks(arguments);
  options.threads_per_rank = options.threads > 0   ? options.threads
                             : env.num_threads > 0 ? env.num_threads
                                                   : std::max(1, usable_cores() / options.num_ranks);
  options.deadline =
      arguments.deadline_s ? std::chrono::milliseconds(static_cast<int64_t>(*arguments.deadline_s * 1000)) : env.deadline;
  options.command = command_text(command_line);
  return options;
}

WireFormat wire_format(const BenchOptions& options, QuantFormat format) {
  const int wire = index_of("--wire", options.wire, {"bf16", "fp8_1x128", "fp8_row", "auto"});
  const WireFormat lossless = format == QuantFormat::fp8_block     ? WireFormat::fp8_1x128
                              : format == QuantFormat::fp8_channel ? WireFormat::fp8_row
                                                                   : WireFormat::bf16;
  const auto wanted = wire == 3 ? lossless : static_cast<WireFormat>(wire);
  if (wanted != WireFormat::bf16 && wanted != lossless)
    fail(ErrorCode::invalid_argument,
         "--wire {} does not feed experts of quant {}: fp8 takes bf16 or fp8_1x128, fp8_channel "
         "takes bf16 or fp8_row, none and mxfp4 take bf16",
         options.wire, name(format));
  return wanted;
}

CombineWire combine_wire(const BenchOptions& options) {
  return static_cast<CombineWire>(index_of("--combine-wire", options.combine_wire, {"bf16", "f32", "f64"}));
}

}  // namespace mixlane::bench
