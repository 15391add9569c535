// What the align kernels get: AlignArgs resolved to plain pointers and numbers.
#pragma once

#include <cstdint>

#include "gpu/divider.hpp"
#include "mixlane/core.hpp"

namespace mixlane::align_gpu {

// Where the pairs' expert ids are.
struct PairSource {
  const void* ids = nullptr;
  const int32_t* segment_rows = nullptr;
  const int32_t* expert_map = nullptr;
  int64_t row_stride = 0;  // in ids
  uint32_t num_rows = 0;
  uint32_t num_topk = 1;
  uint32_t num_pairs = 0;     // num_rows * num_topk
  uint32_t num_segments = 0;  // 0 = every row counts
  uint32_t num_experts = 0;
  uint32_t num_groups = 0;  // local experts
  gpu::Divider by_topk;
  gpu::Divider by_segment;  // rows of one segment
  bool wide_ids = false;
  bool bucket = false;
};

struct Outputs {
  int32_t* sorted_pairs = nullptr;
  int32_t* num_padded = nullptr;
  // The rest may be null.
  int32_t* block_experts = nullptr;
  int32_t* expert_counts = nullptr;
  int32_t* expert_offsets = nullptr;
  int32_t* pair_slots = nullptr;
  float* sorted_weights = nullptr;
  int32_t* sorted_rows = nullptr;
  int32_t* sorted_packed = nullptr;
  std::byte* zero_fill = nullptr;
  Status* status = nullptr;

  const float* weights = nullptr;
  int64_t weight_stride = 0;
  int64_t zero_bytes = 0;
  uint32_t num_blocks = 0;  // entries of block_experts, 0 without it
  uint32_t num_slots = 0;   // of sorted_pairs, in the worst case
  int32_t pad_value = 0;
  bool has_extras = false;  // any of sorted_weights, sorted_rows, sorted_packed
};

struct KernelArgs {
  PairSource source;
  Outputs out;
  gpu::Divider by_block;
  uint32_t num_codes = 0;         // groups, and the bucket if there is one
  uint32_t* barrier = nullptr;    // multi_phase, radix: zero between calls
  uint32_t* workspace = nullptr;  // multi_phase, radix
};

}  // namespace mixlane::align_gpu
