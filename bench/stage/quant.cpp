#include "stage/quant.hpp"

#include "ops/quant/op.hpp"

namespace mixlane::bench {

int64_t QuantStage::set_bytes(const StageInputs& inputs) {
  return int64_t{inputs.cell().tokens} * inputs.cell().shape.hidden * 3;
}

QuantStage::QuantStage(const StageSetup& setup, ScaleGroup group, int num_sets)
    : OpStage(setup.context, select_quant, quantize),
      inputs_(setup.inputs),
      group_(group),
      num_sets_(num_sets > 0 ? num_sets : setup.num_sets(set_bytes(setup.inputs))) {
  const Device device = setup.context.device();
  const int64_t rows = inputs_.cell().tokens, cols = inputs_.cell().shape.hidden;
  const bool is_mxfp4 = group == ScaleGroup::group_1x32;
  const ScaleTiles tiles(group, rows, cols);
  hidden_ = DeviceTensor(device, DType::bf16, {rows, cols}, num_sets_, inputs_.hidden().data());
  values_ = DeviceTensor(device, is_mxfp4 ? DType::fp4_e2m1 : DType::fp8_e4m3, {rows, cols}, num_sets_);
  const DType scale_type = is_mxfp4 ? DType::e8m0 : DType::f32;
  scales_ = group == ScaleGroup::row ? DeviceTensor(device, scale_type, {tiles.rows}, num_sets_)
                                     : DeviceTensor(device, scale_type, {tiles.rows, tiles.cols}, num_sets_);
}

std::string QuantStage::options() const { return fmt::format("group={}", short_name(group_)); }

QuantArgs QuantStage::args(int set) const {
  QuantArgs args;
  args.input = hidden_.view(set);
  args.group = group_;
  args.output = values_.view(set);
  args.scales = scales_.view(set);
  args.independent_of_previous = independent_;
  return args;
}

void QuantStage::poison(Stream stream, int set) {
  values_.poison(stream, set);
  scales_.poison(stream, set);
}

void QuantStage::run_reference() {
  expected_values_.resize(static_cast<size_t>(values_.bytes()));
  expected_scales_.resize(static_cast<size_t>(scales_.bytes()));
  QuantArgs on_cpu = args(0);
  on_cpu.input.data = inputs_.hidden().data();
  on_cpu.output.data = expected_values_.data();
  on_cpu.scales.data = expected_scales_.data();
  on_cpu.input.device = on_cpu.output.device = on_cpu.scales.device = inputs_.cpu().device();
  quantize(inputs_.cpu(), on_cpu);
}

Correctness QuantStage::verify(Stream stream, int set) {
  if (expected_values_.empty()) run_reference();
  const std::vector<std::byte> values = values_.fetch(stream, set), scales = scales_.fetch(stream, set);
  const int64_t different = count_different(values.data(), expected_values_.data(), values_.bytes()) +
                            count_different(scales.data(), expected_scales_.data(), scales_.bytes());
  return exact_check(inputs_.cell().tokens, different, values_.bytes() + scales_.bytes(), "quant.cpu");
}

StageWork QuantStage::work() const { return work_of(quantize_cost(args(0))); }

std::vector<std::unique_ptr<DeviceStage>> make_quant_stages(const StageSetup& setup) {
  std::vector<ScaleGroup> groups = setup.options.quant_groups;
  if (groups.empty()) groups = {quant_group_of(setup.inputs.cell().format)};
  std::vector<std::unique_ptr<DeviceStage>> stages;
  for (const ScaleGroup group : groups) stages.push_back(std::make_unique<QuantStage>(setup, group));
  return stages;
}

}  // namespace mixlane::bench
