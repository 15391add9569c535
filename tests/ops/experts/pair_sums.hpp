// The sums over each row's pairs that a call with pair_slots must give, from what the same call gives per pair.
#pragma once

#include "case.hpp"

namespace mixlane::test {

class PairSumCase {
 public:
  explicit PairSumCase(ExpertsCase& test, DType output_dtype_, int num_segments) : dtype(output_dtype_), test_(test) {
    const int64_t rows = test.num_rows, topk = test.shape.num_topk;
    slots.assign(static_cast<size_t>(rows * topk), -1);
    for (size_t e = 0; e < test.shape.counts.size(); ++e)
      for (int s = test.offsets[e]; s < test.offsets[e] + test.shape.counts[e]; ++s) slots[test.sorted_pairs[s]] = s;
    weights = normal_f32(test.rng, rows * (topk + 1));
    for (int64_t p = 0; p < rows * topk; ++p)
      if (slots[p] < 0) {
        weights[p / topk * (topk + 1) + p % topk] = NAN;          // nobody may look at it
        if (p % 2 == 0) slots[p] = test.offsets[0] > 0 ? 0 : -1;  // as of an invalid bucket
      }
    // Of one segment all but the last row, of several some of each.
    segments.assign(static_cast<size_t>(num_segments), 0);
    for (int s = 0; s < num_segments; ++s)
      segments[s] = num_segments == 1 ? static_cast<int32_t>(rows) - 1 : static_cast<int32_t>(s % (rows / num_segments + 1));
    output.assign(static_cast<size_t>(rows) * stride() * (dtype == DType::f32 ? 2 : 1), ExpertsCase::kPoison);
  }

  ExpertsArgs args(bool with_weights = true) {
    const int64_t rows = test_.num_rows, topk = test_.shape.num_topk;
    ExpertsArgs a = test_.args();
    a.pair_slots = ConstTensorView(slots.data(), DType::i32, {rows, topk});
    if (with_weights) {
      a.topk_weights = ConstTensorView(weights.data(), DType::f32, {rows, topk});
      a.topk_weights.strides[0] = topk + 1;
    }
    if (!segments.empty())
      a.segment_rows = ConstTensorView(segments.data(), DType::i32, {static_cast<int64_t>(segments.size())});
    a.output = TensorView(output.data(), dtype, {rows, test_.shape.hidden});
    a.output.strides[0] = stride();
    return a;
  }

  // From the rows per pair in the case's output.
  std::vector<uint16_t> expected(bool with_weights = true) const {
    const int64_t topk = test_.shape.num_topk, hidden = test_.shape.hidden;
    std::vector<uint16_t> want(output.size(), ExpertsCase::kPoison);
    for (int64_t row = 0; row < test_.num_rows; ++row) {
      if (!counts(row)) continue;
      for (int64_t h = 0; h < hidden; ++h) {
        float sum = 0;
        for (int64_t k = 0; k < topk; ++k) {
          const int slot = slots[row * topk + k];
          if (slot < test_.offsets[0]) continue;
          const float weight = with_weights ? weights[row * (topk + 1) + k] : 1.0f;
          sum = sum + weight * bf16_to_f32(test_.output[slot * (hidden + 8) + h]);
        }
        if (dtype == DType::f32)
          std::memcpy(&want[(row * stride() + h) * 2], &sum, 4);
        else
          want[row * stride() + h] = f32_to_bf16(sum);
      }
    }
    return want;
  }

  bool counts(int64_t row) const {
    if (segments.empty()) return true;
    const int64_t each = test_.num_rows / static_cast<int64_t>(segments.size());
    return row % each < segments[row / each];
  }
  // No multiple of 16 bytes every other time.
  int64_t stride() const { return test_.shape.hidden + (test_.shape.num_topk % 2 == 0 ? 8 : 1); }

  DType dtype;
  std::vector<int32_t> slots, segments;
  std::vector<float> weights;
  std::vector<uint16_t> output;

 private:
  ExpertsCase& test_;
};

// Shapes of the tests: few and many pairs per row, rows without any, an expert that has all, no pair at all.
struct PairSumShape {
  std::vector<int> counts;
  int num_topk;
  int num_segments;  // 0: all rows count
};
inline const PairSumShape kPairSumShapes[] = {{{3, 0, 1, 40}, 2, 0},     {{3, 0, 1, 39}, 1, 1}, {{17, 30, 1, 9, 70}, 8, 0},
                                              {{60, 60, 60, 19}, 10, 7}, {{0, 130, 0}, 5, 3},   {{0, 0}, 3, 0},
                                              {{40, 55}, 37, 0}};

}  // namespace mixlane::test
