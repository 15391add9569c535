#include <algorithm>
#include <charconv>

#include "core/env.hpp"
#include "core/error.hpp"
#include "doctor/probes.hpp"
#include "ops/quant/formats.hpp"
#include "run/options.hpp"
#include "run/variants.hpp"
#include "stage/device.hpp"
#include "stage/sweep.hpp"

namespace mixlane::bench {
namespace {

constexpr int kDefaultRanks = 4;
constexpr double kGpuMinTime = 0.02, kGpuMaxTime = 0.2;

// The index of `value` among `valid`, or invalid_argument naming the option and what it takes.
int index_of(std::string_view option, const std::string& value, std::initializer_list<std::string_view> valid) {
  const auto found = std::find(valid.begin(), valid.end(), value);
  if (found == valid.end())
    fail(ErrorCode::invalid_argument, "{} '{}' is unknown; valid ones: {}", option, value, fmt::join(valid, ", "));
  return static_cast<int>(found - valid.begin());
}

// "cuda:1" -> the device, of whatever build and machine.
Device resolve_device(const std::string& text) {
  const size_t colon = std::min(text.find(':'), text.size());
  Device device;
  device.type = static_cast<DeviceType>(index_of("--device", text.substr(0, colon), {"cpu", "cuda", "hip"}));
  if (colon == text.size()) return device;
  const char* end = text.data() + text.size();
  const auto [parsed, error] = std::from_chars(text.data() + colon + 1, end, device.index);
  if (error != std::errc() || parsed != end || device.index < 0 || device.type == DeviceType::cpu)
    fail(ErrorCode::invalid_argument, "--device '{}' is unknown; write cpu, cuda, hip, or an index as in cuda:1", text);
  return device;
}

int resolve_ranks(const BenchArguments& arguments, bool on_gpu, bool exchanges) {
  const LaunchInfo launch = launch_info();
  if (launch.source == "none") return arguments.ranks.value_or(exchanges ? num_gpus() : on_gpu ? 1 : kDefaultRanks);
  if (on_gpu) fail(ErrorCode::invalid_argument, "stages alone run in one process; start them without {}", launch.source);
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

// --experts and --topk make a shape of their own, which the name tells.
void override_shape(const BenchArguments& arguments, Model& shape) {
  if (!arguments.experts && !arguments.topk) return;
  if (!arguments.checkpoint.empty())
    fail(ErrorCode::invalid_argument, "--checkpoint has the model's own experts; leave --experts and --topk out");
  if (arguments.experts) {
    shape.routing.num_experts = *arguments.experts;
    shape.name += fmt::format("-E{}", *arguments.experts);
  }
  if (arguments.topk) {
    shape.routing.num_topk = *arguments.topk;
    shape.name += fmt::format("-K{}", *arguments.topk);
  }
  validate(shape.routing);
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
  plan.max_time_s = max_time_s.value_or(on_gpu() ? kGpuMaxTime : plan.max_time_s);
  plan.min_time_s = std::min(min_time_s.value_or(on_gpu() ? kGpuMinTime : plan.min_time_s), plan.max_time_s);
  plan.target = target;
  plan.max_samples = max_samples;
  plan.min_samples = std::min(plan.min_samples, max_samples);
  plan.cold = caches.front() == CacheState::cold;
  return plan;
}

namespace {

// What only one of the two kinds of benchmark has.
void check_layer_options(const BenchOptions& options) {
  if (!options.stages.empty() || options.stage_options_text.any() || options.exchange_text.any() || options.kernel_times)
    fail(ErrorCode::invalid_argument,
         "--stages, --kernel-times, --align-block, --id-type, --logits-type, --quant-group, --quant-type, --quant-scales, "
         "--experts-output, "
         "--batch-invariant, --dispatch, --combine-rows, "
         "--input, --multiprocessors, --padded-to and --overlap are of stages alone, which run on a GPU: add --device cuda "
         "or "
         "hip; on the cpu the layer's table has every stage");
  if (options.modes.size() != 1 || options.modes[0] != LaunchMode::eager || options.caches.size() != 1)
    fail(ErrorCode::invalid_argument, "on the cpu --mode is eager, and --cache is one of hot, cold");
  for (const Workload& workload : options.workloads)
    if (workload.skew == Skew::one_expert)
      fail(ErrorCode::invalid_argument, "--workload one_expert is for stages alone on a GPU: no router makes it");
}

void check_gpu_options(const BenchOptions& options) {
  if (!options.hidden.empty() || !options.logits.empty() || options.mask)
    fail(ErrorCode::invalid_argument,
         "--hidden, --logits and --mask are of a layer, which runs on the cpu; on a GPU stages are measured alone");
  const auto& chosen = options.stages;
  if (!options.checkpoint.empty() && !chosen.empty() && std::find(chosen.begin(), chosen.end(), "experts") == chosen.end())
    fail(ErrorCode::invalid_argument,
         "--checkpoint on a GPU has the weights of the experts stage, --stages {} does not; add experts, or leave "
         "--checkpoint out",
         fmt::join(chosen, ","));
  const auto of_one_rank = [](const std::string& stage) { return stage != "dispatch" && stage != "combine"; };
  const bool lone = options.stages.empty() || std::any_of(options.stages.begin(), options.stages.end(), of_one_rank);
  for (const Workload& workload : options.workloads)
    if (workload.skew == Skew::ragged && lone)
      fail(ErrorCode::invalid_argument,
           "--workload ragged spreads tokens over ranks, which only --stages dispatch,combine have; other stages alone have "
           "one rank's");
  std::vector<std::string> known = stage_names();
  known.insert(known.end(), {"dispatch", "combine"});
  for (const std::string& stage : options.stages)
    if (std::find(known.begin(), known.end(), stage) == known.end())
      fail(ErrorCode::invalid_argument, "--stages '{}' is unknown; valid ones: {}", stage, fmt::join(known, ", "));
}

void resolve_gpu(BenchOptions& options) {
  require_gpu(options.chosen_device);
  check_gpu_options(options);
  if (options.stages.empty()) options.stages = stage_names();
  if (!options.has_tokens) options.tokens = {1, 8, 64, 512, 4096, 16384};
  options.stage_options = parse_stage_options(options.stage_options_text);
  options.exchange = parse_exchange_options(options.exchange_text);
  if (options.exchange_text.any() && !has_exchange(options.stages))
    fail(
        ErrorCode::invalid_argument,
        "--dispatch, --combine-rows, --input, --multiprocessors, --padded-to and --overlap are of dispatch and combine; add "
        "--stages dispatch,combine");
  options.variant_lists = parse_variant_lists(options.variants, lone_stage_variants(), options.chosen_device.type);
}

}  // namespace

BenchOptions resolve(const BenchArguments& arguments, const std::vector<std::string>& command_line) {
  BenchOptions options;
  static_cast<BenchArguments&>(options) = arguments;
  const Env env = Env::read();
  options.shape = find_model(env, options.model);
  options.chosen_device = resolve_device(options.device);
  options.device = name(options.chosen_device.type);
  override_shape(arguments, options.shape);
  for (const std::string& quant : options.quant) options.formats.push_back(quant_format_from_name(quant));
  check_recorded(arguments);
  if (options.hidden.empty() && options.logits.empty())
    for (const std::string& text : options.workload) options.workloads.push_back(parse_workload(text));
  require_distinct("--quant", options.quant);
  require_distinct("--tokens", options.tokens);
  require_distinct("--workload", options.workload_names());
  require_distinct("--mode", options.mode);
  require_distinct("--cache", options.cache);
  require_distinct("--stages", options.stages);
  require_distinct("--align-block", options.stage_options_text.align_block);
  require_distinct("--id-type", options.stage_options_text.id_type);
  require_distinct("--logits-type", options.stage_options_text.logits_type);
  require_distinct("--quant-group", options.stage_options_text.quant_group);
  require_distinct("--quant-type", options.stage_options_text.quant_type);
  require_distinct("--quant-scales", options.stage_options_text.quant_scales);
  require_distinct("--experts-output", options.stage_options_text.experts_output);
  require_distinct("--batch-invariant", options.stage_options_text.batch_invariant);
  require_distinct("--dispatch", options.exchange_text.dispatch);
  require_distinct("--combine-rows", options.exchange_text.combine_rows);
  require_distinct("--input", options.exchange_text.input);
  require_distinct("--multiprocessors", options.exchange_text.multiprocessors);
  if (options.mode.empty()) options.mode = {options.on_gpu() ? "graph" : "eager"};
  for (const std::string& mode : options.mode)
    options.modes.push_back(static_cast<LaunchMode>(index_of("--mode", mode, {"eager", "graph"})));
  for (const std::string& cache : options.cache)
    options.caches.push_back(static_cast<CacheState>(index_of("--cache", cache, {"hot", "cold"})));
  if (!options.json.empty()) index_of("--json", options.json, {"-"});
  for (QuantFormat format : options.formats) wire_format(options, format);
  combine_wire(options);
  if (options.on_gpu()) {
    resolve_gpu(options);
  } else {
    check_layer_options(options);
    options.variant_of = parse_variants(options.variants);
  }
  options.num_ranks = resolve_ranks(arguments, options.on_gpu(), has_exchange(options.stages));
  options.threads_per_rank = options.threads > 0   ? options.threads
                             : env.num_threads > 0 ? env.num_threads
                             : options.on_gpu()    ? usable_cores()
                                                   : std::max(1, usable_cores() / options.num_ranks);
  options.deadline =
      arguments.deadline_s ? std::chrono::milliseconds(static_cast<int64_t>(*arguments.deadline_s * 1000)) : env.deadline;
  options.command = command_text(command_line);
  return options;
}

WireFormat wire_format(const BenchOptions& options, QuantFormat format) {
  const int wire = index_of("--wire", options.wire, {"bf16", "fp8_1x128", "fp8_row", "mxfp4", "auto"});
  const WireFormat lossless = !quantises_activations(format)                        ? WireFormat::bf16
                              : activation_group(format) == ScaleGroup::group_1x128 ? WireFormat::fp8_1x128
                                                                                    : WireFormat::fp8_row;
  const auto wanted = wire == 4 ? lossless : static_cast<WireFormat>(wire);
  const bool feeds_experts = !has_exchange(options.stages);  // those stages alone feed nobody
  if (feeds_experts && wanted != WireFormat::bf16 && wanted != lossless)
    fail(ErrorCode::invalid_argument,
         "--wire {} does not feed experts of quant {}: fp8 and mxfp4_fp8 take bf16 or fp8_1x128, "
         "fp8_channel takes bf16 or fp8_row, none and mxfp4 take bf16",
         options.wire, name(format));
  return wanted;
}

CombineWire combine_wire(const BenchOptions& options) {
  return static_cast<CombineWire>(index_of("--combine-wire", options.combine_wire, {"bf16", "fp8_1x128", "f32", "f64"}));
}

}  // namespace mixlane::bench
