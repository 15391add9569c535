// What the experts kernels get: ExpertsArgs resolved to plain pointers and numbers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gpu/divider.hpp"
#include "mixlane/experts.hpp"

namespace mixlane::experts_gpu {

// Which rows each expert has and where they go. Null pointers: one expert, slot i is row i of `num_rows`.
struct Slots {
  const int32_t* sorted_pairs = nullptr;
  const int32_t* counts = nullptr;
  const int32_t* offsets = nullptr;
  uint32_t num_experts = 0;
  uint32_t num_rows = 0;
  gpu::Divider by_topk;
};

// Rows of a matrix, the stride in bytes.
template <class Byte>
struct Rows {
  Byte* data = nullptr;
  int64_t stride = 0;
};

// f32 values, the stride in values.
template <class Value>
struct Floats {
  Value* data = nullptr;
  int64_t stride = 0;
};

struct ScaleRowsArgs {
  Rows<const std::byte> rows;  // bf16
  Floats<const float> weights;
  void* output = nullptr;  // bf16 [pairs, hidden]
  uint32_t hidden = 0;
  gpu::Divider by_topk;
};

struct SumPairsArgs {
  Rows<const std::byte> pair_rows;        // bf16, per slot
  const int32_t* pair_slots = nullptr;    // [rows, num_topk]
  Floats<const float> weights;            // per pair; null: all 1
  const int32_t* offsets = nullptr;       // slots [offsets[0], offsets[num_experts]) are the experts'
  const int32_t* segment_rows = nullptr;  // null: all count
  Rows<std::byte> output;
  bool output_f32 = false;
  bool packets = false;  // rows of output begin at multiples of 16 bytes
  uint32_t num_experts = 0;
  uint32_t num_segments = 1;
  uint32_t rows_per_segment = 0;
  uint32_t num_topk = 1;
  uint32_t hidden = 0;
};

}  // namespace mixlane::experts_gpu
