// The inside of quant: scale tiles, cost and the tables of variants. The contract is in mixlane/quant.hpp.
#pragma once

#include <span>
#include <vector>

#include "core/registry.hpp"
#include "mixlane/quant.hpp"
#include "ops/cost.hpp"

namespace mixlane {

// The values that share a scale, as a tile of the matrix, and how many tiles the matrix has.
struct ScaleTiles {
  int64_t tile_rows = 1;
  int64_t tile_cols = 1;
  int64_t rows = 0;  // tiles below each other
  int64_t cols = 0;  // tiles beside each other

  ScaleTiles(ScaleGroup group, int64_t matrix_rows, int64_t matrix_cols);
};

// Throw invalid_argument. They look at shapes and options only.
void validate(const Context& context, const QuantArgs& args);
void validate(const Context& context, const DequantArgs& args);

Cost quantize_cost(const QuantArgs& args);
Cost dequantize_cost(const DequantArgs& args);

std::vector<VariantInfo> quant_variants();
std::vector<VariantInfo> dequant_variants();

// The one that runs.
const Variant<QuantArgs>& select_quant(const Context& context, const QuantArgs& args);
const Variant<DequantArgs>& select_dequant(const Context& context, const DequantArgs& args);

std::string_view name(ScaleGroup group);

// Variants
std::span<const Variant<QuantArgs>> quant_gpu_variants();  // none in a build without a GPU backend
std::span<const Variant<DequantArgs>> dequant_gpu_variants();
void launch_quant_cpu(Context& context, const QuantArgs& args, Stream stream);
void launch_dequant_cpu(Context& context, const DequantArgs& args, Stream stream);

}  // namespace mixlane
