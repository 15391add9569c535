#include "ops/quant/op.hpp"

#include <algorithm>
#include <array>

#include "core/check.hpp"

namespace mixlane {
namespace {

constexpr std::array<Variant<QuantArgs>, 1> kQuantCpuVariants{{
    {{"quant.cpu", "per scale tile: one pass for the largest magnitude, one that encodes"}, nullptr, launch_quant_cpu},
}};
constexpr std::array<Variant<DequantArgs>, 1> kDequantCpuVariants{{
    {{"dequant.cpu", "one pass per scale tile"}, nullptr, launch_dequant_cpu},
}};

std::span<const Variant<QuantArgs>> quant_variants_of(DeviceType device) {
  return device == DeviceType::cpu ? std::span<const Variant<QuantArgs>>(kQuantCpuVariants) : quant_gpu_variants();
}
std::span<const Variant<DequantArgs>> dequant_variants_of(DeviceType device) {
  return device == DeviceType::cpu ? std::span<const Variant<DequantArgs>>(kDequantCpuVariants) : dequant_gpu_variants();
}

constexpr std::array<std::pair<QuantFormat, std::string_view>, 5> kFormatNames{{
    {QuantFormat::none, "none"},
    {QuantFormat::fp8_block, "fp8"},
    {QuantFormat::fp8_channel, "fp8_channel"},
    {QuantFormat::mxfp4, "mxfp4"},
    {QuantFormat::mxfp4_fp8, "mxfp4_fp8"},
}};

void validate_values(std::string_view argument, const ConstTensorView& view, ScaleGroup group, int64_t rows, int64_t cols,
                     Device device) {
  if (group != ScaleGroup::group_1x32) {
    require_tensor(argument, view, {{DType::fp8_e4m3}, {rows, cols}, true}, device);
    return;
  }
  require_tensor(argument, view, {{DType::fp4_e2m1}, {rows, cols}, true}, device);
  if (view.shape[1] % 2 != 0 || (view.shape[0] > 1 && view.strides[0] % 2 != 0))
    fail(ErrorCode::invalid_argument, "{} is {}; fp4 rows are whole bytes: columns and row stride must be even", argument,
         to_string(view));
}

void validate_scales(const ConstTensorView& scales, ScaleGroup group, int64_t rows, int64_t cols, Device device) {
  const ScaleTiles tiles(group, rows, cols);
  ConstTensorView dense = scales;  // every stride will do
  for (int64_t d = dense.ndim - 1, stride = 1; d >= 0; stride *= dense.shape[d--]) dense.strides[d] = stride;
  try {
    if (group == ScaleGroup::row) {
      require_tensor("scales", dense, {{DType::f32}, {tiles.rows}}, device);
    } else {
      const DType dtype = group == ScaleGroup::group_1x32 ? DType::e8m0 : DType::f32;
      require_tensor("scales", dense, {{dtype}, {tiles.rows, tiles.cols}}, device);
    }
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("for {} of a [{}, {}] matrix: {}", name(group), rows, cols, error.what()));
  }
}

int64_t bytes_of(const ConstTensorView& view) { return view.num_values() * bits(view.dtype) / 8; }

}  // namespace

std::string_view name(ScaleGroup group) {
  switch (group) {
    case ScaleGroup::group_1x128: return "group_1x128";
    case ScaleGroup::row: return "row";
    case ScaleGroup::block_128x128: return "block_128x128";
    case ScaleGroup::group_1x32: return "group_1x32";
  }
  fail(ErrorCode::invalid_argument, "group is {}; it must be one of ScaleGroup's values", static_cast<int>(group));
}

std::string_view name(QuantFormat format) {
  for (const auto& [value, text] : kFormatNames)
    if (value == format) return text;
  return "unknown";
}

QuantFormat quant_format_from_name(std::string_view name) {
  std::string valid;
  for (const auto& [value, text] : kFormatNames) {
    if (text == name) return value;
    valid += fmt::format("{}{}", valid.empty() ? "" : ", ", text);
  }
  fail(ErrorCode::invalid_argument, "unknown quantisation '{}'; valid ones: {}", name, valid);
}

ScaleTiles::ScaleTiles(ScaleGroup group, int64_t matrix_rows, int64_t matrix_cols) {
  switch (group) {
    case ScaleGroup::group_1x128: tile_cols = 128; break;
    case ScaleGroup::row: tile_cols = std::max<int64_t>(matrix_cols, 1); break;
    case ScaleGroup::block_128x128: tile_rows = tile_cols = 128; break;
    case ScaleGroup::group_1x32: tile_cols = 32; break;
  }
  rows = (matrix_rows + tile_rows - 1) / tile_rows;
  cols = (matrix_cols + tile_cols - 1) / tile_cols;
}

void validate(const Context& context, const QuantArgs& args) {
  name(args.group);
  const Device device = context.device();
  require_tensor("input", args.input, {{DType::bf16, DType::f16, DType::f32}, {kAnySize, kAnySize}, true}, device);
  const int64_t rows = args.input.shape[0], cols = args.input.shape[1];
  validate_values("output", args.output, args.group, rows, cols, device);
  validate_scales(args.scales, args.group, rows, cols, device);
  require_tensor_if_given("num_valid_rows", args.num_valid_rows, {{DType::i32}, {1}}, device);
}

void validate(const Context& context, const DequantArgs& args) {
  name(args.group);
  const Device device = context.device();
  validate_values("input", args.input, args.group, kAnySize, kAnySize, device);
  const int64_t rows = args.input.shape[0], cols = args.input.shape[1];
  validate_scales(args.scales, args.group, rows, cols, device);
  require_tensor("output", args.output, {{DType::bf16, DType::f16, DType::f32}, {rows, cols}, true}, device);
}

Cost quantize_cost(const QuantArgs& args) {
  // Magnitude, maximum, division, rounding.
  return {bytes_of(args.input), bytes_of(args.output) + bytes_of(args.scales), 4 * args.input.num_values()};
}

Cost dequantize_cost(const DequantArgs& args) {
  return {bytes_of(args.input) + bytes_of(args.scales), bytes_of(args.output), args.input.num_values()};
}

std::vector<VariantInfo> quant_variants() {
  std::vector<VariantInfo> all = infos(std::span<const Variant<QuantArgs>>(kQuantCpuVariants));
  for (const VariantInfo& info : infos(quant_gpu_variants())) all.push_back(info);
  return all;
}
std::vector<VariantInfo> dequant_variants() {
  std::vector<VariantInfo> all = infos(std::span<const Variant<DequantArgs>>(kDequantCpuVariants));
  for (const VariantInfo& info : infos(dequant_gpu_variants())) all.push_back(info);
  return all;
}

const Variant<QuantArgs>& select_quant(const Context& context, const QuantArgs& args) {
  return select(quant_variants_of(context.device().type), args.variant, context, args);
}

const Variant<DequantArgs>& select_dequant(const Context& context, const DequantArgs& args) {
  return select(dequant_variants_of(context.device().type), args.variant, context, args);
}

void quantize(Context& context, const QuantArgs& args, Stream stream) {
  validate(context, args);
  select_quant(context, args).launch(context, args, stream);
}

void dequantize(Context& context, const DequantArgs& args, Stream stream) {
  validate(context, args);
  select_dequant(context, args).launch(context, args, stream);
}

}  // namespace mixlane
