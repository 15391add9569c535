#include "stage/quant.hpp"

#include <cstring>

#include "core/numeric.hpp"
#include "ops/quant/op.hpp"

namespace mixlane::bench {

DType QuantCase::code_type() const { return group == ScaleGroup::group_1x32 ? DType::fp4_e2m1 : DType::fp8_e4m3; }
DType QuantCase::scale_type() const { return group == ScaleGroup::group_1x32 ? DType::e8m0 : DType::f32; }

std::string QuantCase::text() const {
  return fmt::format("group={}{}{}", short_name(group), type == DType::bf16 ? "" : fmt::format(" values={}", name(type)),
                     scales_by_column ? " scales=columns" : "");
}

int64_t QuantCase::set_bytes(int64_t rows, int64_t cols) const { return rows * cols * (bits(type) / 8 + 1); }

int64_t QuantCase::num_scales(int64_t rows, int64_t cols) const {
  const ScaleTiles tiles(group, rows, cols);
  return tiles.rows * tiles.cols;
}

TensorView QuantCase::scales(void* data, int64_t rows, int64_t cols, Device device) const {
  const ScaleTiles tiles(group, rows, cols);
  if (group == ScaleGroup::row) return TensorView(data, scale_type(), {tiles.rows}, device);
  TensorView view(data, scale_type(), {tiles.rows, tiles.cols}, device);
  if (scales_by_column) view.strides = {1, tiles.rows};
  return view;
}

std::vector<QuantCase> quant_cases(const StageSetup& setup) {
  const StageOptions& options = setup.options;
  std::vector<ScaleGroup> groups = options.quant_groups;
  if (groups.empty()) groups = {quant_group_of(setup.inputs.cell().format)};
  std::vector<QuantCase> cases;
  for (const ScaleGroup group : groups)
    for (const DType type : options.quant_types)
      for (const bool by_column : options.quant_scales_by_column) cases.push_back({group, type, by_column});
  return cases;
}

std::vector<std::byte> encoded_rows(StageInputs& inputs, DType type) {
  const std::span<const uint16_t> hidden = inputs.hidden();
  std::vector<std::byte> rows(hidden.size() * static_cast<size_t>(bits(type)) / 8);
  if (type == DType::bf16) {
    std::memcpy(rows.data(), hidden.data(), rows.size());
  } else if (type == DType::f32) {
    auto* values = reinterpret_cast<float*>(rows.data());
    for (size_t i = 0; i < hidden.size(); ++i) values[i] = bf16_to_f32(hidden[i]);
  } else {
    auto* values = reinterpret_cast<uint16_t*>(rows.data());
    for (size_t i = 0; i < hidden.size(); ++i) values[i] = f32_to_f16(bf16_to_f32(hidden[i]));
  }
  return rows;
}

// ---------------------------------------------------------------------------------------------------------------------

QuantStage::QuantStage(const StageSetup& setup, const QuantCase& which, int num_sets)
    : OpStage(setup.context, select_quant, quantize),
      inputs_(setup.inputs),
      case_(which),
      host_rows_(encoded_rows(setup.inputs, which.type)) {
  const Device device = setup.context.device();
  const int64_t rows = inputs_.cell().tokens, cols = inputs_.cell().shape.hidden;
  num_sets_ = num_sets > 0 ? num_sets : setup.num_sets(case_.set_bytes(rows, cols));
  rows_ = DeviceTensor(device, case_.type, {rows, cols}, num_sets_, host_rows_.data());
  codes_ = DeviceTensor(device, case_.code_type(), {rows, cols}, num_sets_);
  scales_ = DeviceTensor(device, case_.scale_type(), {case_.num_scales(rows, cols)}, num_sets_);
}

QuantArgs QuantStage::args(int set) const {
  QuantArgs args;
  args.input = rows_.view(set);
  args.group = case_.group;
  args.output = codes_.view(set);
  args.scales = case_.scales(scales_.view(set).data, args.input.shape[0], args.input.shape[1], args.input.device);
  args.independent_of_previous = independent_;
  return args;
}

void QuantStage::poison(Stream stream, int set) {
  codes_.poison(stream, set);
  scales_.poison(stream, set);
}

void QuantStage::run_reference() {
  expected_codes_.resize(static_cast<size_t>(codes_.bytes()));
  expected_scales_.resize(static_cast<size_t>(scales_.bytes()));
  Context& cpu = inputs_.cpu();
  quantize(cpu, on_host(args(0), host_rows_.data(), expected_codes_.data(), expected_scales_.data(), cpu.device()));
}

Correctness QuantStage::verify(Stream stream, int set) {
  if (expected_codes_.empty()) run_reference();
  const std::vector<std::byte> codes = codes_.fetch(stream, set), scales = scales_.fetch(stream, set);
  const auto num_codes = static_cast<int64_t>(codes.size()), num_scales = static_cast<int64_t>(scales.size());
  const int64_t different = count_different(codes.data(), expected_codes_.data(), num_codes) +
                            count_different(scales.data(), expected_scales_.data(), num_scales);
  return exact_check(inputs_.cell().tokens, different, num_codes + num_scales, "quant.cpu");
}

StageWork QuantStage::work() const { return work_of(quantize_cost(args(0))); }

std::vector<std::unique_ptr<DeviceStage>> make_quant_stages(const StageSetup& setup) {
  std::vector<std::unique_ptr<DeviceStage>> stages;
  for (const QuantCase& which : quant_cases(setup)) stages.push_back(std::make_unique<QuantStage>(setup, which));
  return stages;
}

}  // namespace mixlane::bench
