#include "stage/routing.hpp"

#include <algorithm>
#include <cstring>

#include "core/numeric.hpp"
#include "ops/routing/op.hpp"

namespace mixlane::bench {
namespace {

constexpr double kTolerance = 1e-6;  // of weights, relative: f32 sums in another order

std::vector<int64_t> widened(const std::vector<std::byte>& ids, DType type) {
  std::vector<int64_t> wide(ids.size() * 8 / static_cast<size_t>(bits(type)));
  if (type == DType::i64)
    std::memcpy(wide.data(), ids.data(), ids.size());
  else
    std::copy_n(reinterpret_cast<const int32_t*>(ids.data()), wide.size(), wide.begin());
  return wide;
}

std::vector<float> floats(const std::vector<std::byte>& values) {
  std::vector<float> result(values.size() / sizeof(float));
  std::memcpy(result.data(), values.data(), values.size());
  return result;
}

}  // namespace

int64_t RoutingStage::set_bytes(const StageInputs& inputs, DType logits_type) {
  return int64_t{inputs.cell().tokens} *
         (inputs.num_columns() * bits(logits_type) / 8 + inputs.cell().shape.routing.num_topk * 8);
}

RoutingStage::RoutingStage(const StageSetup& setup, const Case& which, int num_sets)
    : OpStage(setup.context, select_routing, route),
      inputs_(setup.inputs),
      case_(which),
      num_sets_(num_sets > 0 ? num_sets : setup.num_sets(set_bytes(setup.inputs, which.logits_type))) {
  const Device device = setup.context.device();
  const RoutingConfig& routing = inputs_.cell().shape.routing;
  const int64_t tokens = inputs_.cell().tokens;
  encode_logits();
  logits_ = DeviceTensor(device, case_.logits_type, {tokens, inputs_.num_columns()}, num_sets_, host_logits_.data());
  if (const auto bias = inputs_.correction_bias(); !bias.empty())
    bias_ = DeviceTensor(device, DType::f32, {inputs_.num_columns()}, 1, bias.data());
  ids_ = DeviceTensor(device, case_.id_type, {tokens, routing.num_topk}, num_sets_);
  weights_ = DeviceTensor(device, DType::f32, {tokens, routing.num_topk}, num_sets_);
  if (routing.num_zero_experts > 0) zero_weights_ = DeviceTensor(device, DType::f32, {tokens}, num_sets_);
  status_ = DeviceTensor(device, DType::u8, {static_cast<int64_t>(sizeof(Status))}, 1);
}

void RoutingStage::encode_logits() {
  const std::span<const float> logits = inputs_.logits();
  host_logits_.resize(logits.size() * static_cast<size_t>(bits(case_.logits_type)) / 8);
  if (case_.logits_type == DType::f32) {
    std::memcpy(host_logits_.data(), logits.data(), host_logits_.size());
    return;
  }
  auto* halves = reinterpret_cast<uint16_t*>(host_logits_.data());
  for (size_t i = 0; i < logits.size(); ++i)
    halves[i] = case_.logits_type == DType::bf16 ? f32_to_bf16(logits[i]) : f32_to_f16(logits[i]);
}

std::string RoutingStage::options() const {
  return fmt::format("logits={} ids={}", name(case_.logits_type), name(case_.id_type));
}

RoutingArgs RoutingStage::args(int set) const {
  RoutingArgs args;
  args.config = inputs_.cell().shape.routing;
  args.logits = logits_.view(set);
  if (bias_.bytes() > 0) args.correction_bias = bias_.view(0);
  args.topk_ids = ids_.view(set);
  args.topk_weights = weights_.view(set);
  if (zero_weights_.bytes() > 0) args.zero_weights = zero_weights_.view(set);
  args.status = static_cast<Status*>(status_.view(0).data);
  return args;
}

void RoutingStage::poison(Stream stream, int set) {
  ids_.poison(stream, set);
  weights_.poison(stream, set);
}

void RoutingStage::run_reference() {
  std::vector<std::byte> ids(static_cast<size_t>(ids_.bytes()));
  expected_.weights.resize(static_cast<size_t>(weights_.bytes()) / sizeof(float));
  std::vector<float> zero_weights(static_cast<size_t>(inputs_.cell().tokens));
  RoutingArgs on_cpu = args(0);
  on_cpu.logits = host_logits();
  if (on_cpu.correction_bias.given()) on_cpu.correction_bias.data = inputs_.correction_bias().data();
  on_cpu.topk_ids.data = ids.data();
  on_cpu.topk_weights.data = expected_.weights.data();
  if (on_cpu.zero_weights.given()) on_cpu.zero_weights.data = zero_weights.data();
  on_cpu.status = nullptr;
  const Device cpu = inputs_.cpu().device();
  on_cpu.correction_bias.device = on_cpu.topk_ids.device = on_cpu.topk_weights.device = on_cpu.zero_weights.device = cpu;
  route(inputs_.cpu(), on_cpu);
  expected_.ids = widened(ids, case_.id_type);
}

ConstTensorView RoutingStage::host_logits() const {
  return {host_logits_.data(), case_.logits_type, {inputs_.cell().tokens, inputs_.num_columns()}};
}

Correctness RoutingStage::verify(Stream stream, int set) {
  if (expected_.ids.empty()) run_reference();
  const RoutingAnswer got{widened(ids_.fetch(stream, set), case_.id_type), floats(weights_.fetch(stream, set))};
  const RoutingDifference difference = compare_routing(expected_, got);
  Correctness check =
      exact_check(inputs_.cell().tokens, difference.num_wrong_ids, static_cast<int64_t>(got.ids.size()), "routing.cpu");
  check.tolerance = kTolerance;
  check.rel_error = std::max(check.rel_error, difference.weight_error);
  check.passed = check.passed && check.rel_error <= kTolerance;
  return check;
}

StageWork RoutingStage::work() const { return work_of(routing_cost(args(0))); }

std::vector<std::unique_ptr<DeviceStage>> make_routing_stages(const StageSetup& setup) {
  std::vector<std::unique_ptr<DeviceStage>> stages;
  for (const DType logits : setup.options.logits_types)
    for (const DType ids : setup.options.id_types)
      stages.push_back(std::make_unique<RoutingStage>(setup, RoutingStage::Case{logits, ids}));
  return stages;
}

}  // namespace mixlane::bench
