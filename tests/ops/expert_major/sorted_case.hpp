// Rows, the slots that align gives them, and what expert_major must make of both.
#pragma once

#include <vector>

#include "core/math.hpp"
#include "mixlane/align.hpp"
#include "mixlane/expert_major.hpp"
#include "support/random.hpp"

namespace mixlane::test {

struct SortedCase {
  int64_t num_rows, num_topk, hidden, num_scales, row_stride, capacity;
  int block;
  std::vector<int32_t> ids, sorted_rows, sorted_pairs, pair_slots, num_padded = {0, 0};
  std::vector<uint16_t> rows;  // [num_rows, row_stride]
  std::vector<float> scales;   // [num_rows, num_scales]

  SortedCase(uint64_t seed, int64_t num_rows_, int num_experts, int64_t hidden_, int64_t num_scales_, int block_)
      : num_rows(num_rows_), num_topk(3), hidden(hidden_), num_scales(num_scales_), row_stride(hidden_ + 24), block(block_) {
    Rng rng(seed);
    for (int64_t i = 0; i < num_rows * num_topk; ++i)
      ids.push_back(static_cast<int32_t>(rng() % static_cast<uint64_t>(num_experts + 1)) - 1);
    rows = normal_bf16(rng, num_rows * row_stride);
    for (int64_t i = 0; i < num_rows * num_scales; ++i) scales.push_back(static_cast<float>(rng() % 1000) + 1.0f);
    capacity = align_capacity(num_rows * num_topk, num_experts, block);
    sorted_rows.assign(static_cast<size_t>(capacity), -7);
    sorted_pairs.assign(static_cast<size_t>(capacity), -7);
    pair_slots.assign(ids.size(), -1);
    Context context({.num_threads = 1});
    AlignArgs args;
    args.topk_ids = ConstTensorView(ids.data(), DType::i32, {num_rows, num_topk});
    args.num_experts = num_experts;
    args.block = block;
    args.sorted_pairs = TensorView(sorted_pairs.data(), DType::i32, {capacity});
    args.sorted_rows = TensorView(sorted_rows.data(), DType::i32, {capacity});
    args.pair_slots = TensorView(pair_slots.data(), DType::i32, {num_rows, num_topk});
    args.num_padded = TensorView(num_padded.data(), DType::i32, {2});
    align(context, args);
  }

  // Poisoned, then what each pair's slot must hold by `pair_slots`, pads zero.
  std::vector<uint16_t> expected_rows() const {
    std::vector<uint16_t> out(static_cast<size_t>(capacity * hidden), 0xffff);
    std::fill_n(out.begin(), num_padded[0] * hidden, uint16_t{0});
    for (int64_t pair = 0; pair < num_rows * num_topk; ++pair)
      for (int64_t h = 0; pair_slots[pair] >= 0 && h < hidden; ++h)
        out[pair_slots[pair] * hidden + h] = rows[pair / num_topk * row_stride + h];
    return out;
  }
  std::vector<float> expected_scales() const {
    std::vector<float> out(static_cast<size_t>(capacity * num_scales), -1.0f);
    std::fill_n(out.begin(), num_padded[0] * num_scales, 0.0f);
    for (int64_t pair = 0; pair < num_rows * num_topk; ++pair)
      for (int64_t s = 0; pair_slots[pair] >= 0 && s < num_scales; ++s)
        out[pair_slots[pair] * num_scales + s] = scales[pair / num_topk * num_scales + s];
    return out;
  }

  // The arguments over memory of `device`, laid out like the vectors.
  ExpertMajorArgs args(const void* rows_at, const void* scales_at, const void* sorted_at, const void* num_padded_at,
                       void* output, void* output_scales, Device device = {}) const {
    ExpertMajorArgs to;
    to.rows = ConstTensorView(rows_at, DType::bf16, {num_rows, hidden}, device);
    to.rows.strides[0] = row_stride;
    to.sorted_rows = ConstTensorView(sorted_at, DType::i32, {capacity}, device);
    to.num_padded = ConstTensorView(num_padded_at, DType::i32, {2}, device);
    to.output = TensorView(output, DType::bf16, {capacity, hidden}, device);
    if (num_scales == 0) return to;
    to.scales = ConstTensorView(scales_at, DType::f32, {num_rows, num_scales}, device);
    to.output_scales = TensorView(output_scales, DType::f32, {capacity, num_scales}, device);
    return to;
  }
};

inline std::vector<SortedCase> sorted_cases() {
  std::vector<SortedCase> cases;
  uint64_t seed = 1;
  for (const int64_t num_rows : {1, 7, 200})
    for (const int num_experts : {1, 5, 40})
      for (const int block : {1, 16})
        for (const int64_t num_scales : {0, 1, 5})
          cases.emplace_back(seed++, num_rows, num_experts, num_rows == 7 ? 2048 : 72, num_scales, block);
  return cases;
}

}  // namespace mixlane::test
