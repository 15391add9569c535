// Operands of the two products as every CPU variant sees them, whatever the storage format.
//
// A row of either operand is `cols` bf16 values, exact, and one f32 scale per group of the reduction:
//   product[m, n] = sum over groups g of  dot(a[m], w[n] over g) * (a_scale[m, g] * w_scale[n, g])
//   none, mxfp4   one group, scales 1 (e2m1 * 2^s is a bf16 value)
//   fp8_channel   one group; a scale per token and per output channel
//   fp8_block     groups of 128
//   mxfp4_fp8     groups of 128; weights as mxfp4's, their scales 1
#pragma once

#include <cstdint>

#include "core/math.hpp"
#include "mixlane/experts.hpp"
#include "ops/quant/formats.hpp"

namespace mixlane {

inline constexpr int64_t kScaleBlock = 128;  // fp8_block, mxfp4_fp8's activations
inline constexpr int64_t kMxGroup = 32;      // mxfp4's weights

// Groups of a reduction over `cols`, and values per group.
inline bool has_groups(QuantFormat format) {
  return quantises_activations(format) && activation_group(format) == ScaleGroup::group_1x128;
}
inline int64_t num_groups(QuantFormat format, int64_t cols) { return has_groups(format) ? ceil_div(cols, kScaleBlock) : 1; }
inline int64_t group_size(QuantFormat format, int64_t cols) { return has_groups(format) ? kScaleBlock : cols; }

// Which pair each slot of an expert holds.
class SlotMap {
 public:
  explicit SlotMap(const ExpertsArgs& args)
      : pairs_(args.sorted_pairs.as<int32_t>()),
        counts_(args.expert_counts.as<int32_t>()),
        offsets_(args.expert_offsets.as<int32_t>()),
        dense_(!args.sorted_pairs.given()),
        rows_(args.rows.shape[0]) {}

  int64_t begin(int64_t expert) const { return dense_ ? 0 : offsets_[expert]; }
  int64_t count(int64_t expert) const { return dense_ ? rows_ : counts_[expert]; }
  int64_t pair(int64_t slot) const { return dense_ ? slot : pairs_[slot]; }

 private:
  const int32_t *pairs_, *counts_, *offsets_;
  bool dense_;
  int64_t rows_;
};

// gate_up or down of one expert, as stored.
struct MatrixView {
  QuantFormat format = QuantFormat::none;
  int64_t rows = 0;  // out
  int64_t cols = 0;  // in, the reduction
  const uint8_t* values = nullptr;
  const void* scales = nullptr;  // f32, e8m0 or nullptr
  const float* bias = nullptr;   // or nullptr
  int64_t row_bytes = 0;         // of values

  const uint8_t* row(int64_t n) const { return values + n * row_bytes; }
  // mxfp4: the e8m0 scales of row n.
  const uint8_t* mx_scales(int64_t n) const { return static_cast<const uint8_t*>(scales) + n * ceil_div(cols, kMxGroup); }
};

MatrixView gate_up_of(const ExpertWeights& weights, int64_t expert);
MatrixView down_of(const ExpertWeights& weights, int64_t expert);

// Row n of a weight matrix as bf16.
void decode_row(const MatrixView& matrix, int64_t n, uint16_t* values);
float weight_scale(const MatrixView& matrix, int64_t n, int64_t group);

// The input row of a pair: gathered, multiplied by the pair's input weight, quantised if the format wants it and the
// row is bf16. `scratch` holds H floats.
void load_input_row(const ExpertsArgs& args, int64_t pair, uint16_t* values, float* scales, float* scratch);

// `count` f32 values that begin at a group boundary, rounded to bf16 (none, mxfp4) or quantised (fp8). For fp8_channel
// this must be the whole row.
void store_operand(QuantFormat format, const float* row, int64_t count, uint16_t* values, float* scales);

}  // namespace mixlane
