// Reading pairs as codes. A code is a group in output order: the invalid bucket (if any) is code 0, experts follow.
#pragma once

#include "gpu/device.hpp"
#include "ops/align/device_args.hpp"

namespace mixlane::align_gpu {

inline constexpr uint32_t kNoCode = 0xffff;          // the pair has no slot: dropped, or its row does not count
inline constexpr int32_t kAbsent = -2147483647 - 1;  // id of a pair whose row does not count; such ids read as kAbsent + 1

// Reported pairs of one thread.
struct Faults {
  uint32_t count = 0;
  uint32_t first = ~0u;
};

__device__ inline uint32_t divide(uint32_t number, const Divider& by) {
  return (__umulhi(number, by.magic) + number) >> by.shift;
}

// Pairs from this one on belong to rows that do not count. Exact for up to one segment; with more, rows are asked singly.
__device__ inline uint32_t count_pairs(const PairSource& source) {
  if (source.num_segments != 1) return source.num_pairs;
  const int32_t rows = min(max(source.segment_rows[0], 0), static_cast<int32_t>(source.num_rows));
  return static_cast<uint32_t>(rows) * source.num_topk;
}

__device__ inline int64_t read_wide_id(const PairSource& source, uint32_t pair) {
  const uint32_t row = divide(pair, source.by_topk);
  const int64_t at = static_cast<int64_t>(row) * source.row_stride + (pair - row * source.num_topk);
  return source.wide_ids ? static_cast<const int64_t*>(source.ids)[at] : static_cast<const int32_t*>(source.ids)[at];
}

// kPlain: contiguous i32 ids, no expert map, at most one segment.
template <bool kPlain>
__device__ int32_t load_id(const PairSource& source, uint32_t pair, uint32_t num_counted) {
  if (pair >= num_counted) return kAbsent;
  if constexpr (kPlain) {
    return max(gpu::load_streaming(static_cast<const int32_t*>(source.ids) + pair), kAbsent + 1);
  } else {
    if (source.num_segments > 1) {
      const uint32_t row = divide(pair, source.by_topk);
      const uint32_t segment = divide(row, source.by_segment);
      const auto in_segment = static_cast<int32_t>(row - segment * source.by_segment.divisor);
      if (in_segment >= source.segment_rows[segment]) return kAbsent;
    }
    const int64_t id = read_wide_id(source, pair);
    return static_cast<int32_t>(min(max(id, static_cast<int64_t>(kAbsent) + 1), static_cast<int64_t>(0x7fffffff)));
  }
}

template <bool kPlain>
__device__ uint32_t code_of(const PairSource& source, int32_t id, uint32_t pair, Faults& faults) {
  const uint32_t first_code = source.bucket ? 1 : 0;
  if (static_cast<uint32_t>(id) < source.num_experts) {
    if (kPlain || !source.expert_map) return static_cast<uint32_t>(id) + first_code;
    const auto local = static_cast<uint32_t>(source.expert_map[id]);
    if (local < source.num_groups) return local + first_code;
  } else {
    if (id == kAbsent) return kNoCode;
    if (id != -1 && !source.bucket) {
      ++faults.count;
      faults.first = min(faults.first, pair);
    }
  }
  return source.bucket ? 0 : kNoCode;
}

}  // namespace mixlane::align_gpu
