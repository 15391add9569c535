// Reading pairs as codes. A code is a group in output order: the invalid bucket (if any) is code 0, experts follow.
#pragma once

#include "gpu/device.hpp"
#include "ops/align/device_args.hpp"

namespace mixlane::align_gpu {

inline constexpr uint32_t kNoCode = 0xffff;          // the pair has no slot: dropped, or its row does not count
inline constexpr int kCodeBits = 11;                 // tell all codes and kNoCode apart: there are at most 1028 codes
inline constexpr int32_t kAbsent = -2147483647 - 1;  // read for a pair whose row does not count (an id never is)

// Reported pairs of one thread.
struct Faults {
  uint32_t count = 0;
  uint32_t first = ~0u;
};

// Pairs from this one on belong to rows that do not count. Exact for up to one segment; with more, rows are asked singly.
__device__ inline uint32_t count_pairs(const PairSource& source) {
  if (source.num_segments != 1) return source.num_pairs;
  const int32_t rows = min(max(source.segment_rows[0], 0), static_cast<int32_t>(source.num_rows));
  return static_cast<uint32_t>(rows) * source.num_topk;
}

// Whether the pair's row counts, where there are several segments.
__device__ inline bool in_counted_row(const PairSource& source, uint32_t pair) {
  const uint32_t row = gpu::divide(pair, source.by_topk);
  const uint32_t segment = gpu::divide(row, source.by_segment);
  return static_cast<int32_t>(row - segment * source.by_segment.divisor) < source.segment_rows[segment];
}

__device__ inline int64_t read_wide_id(const PairSource& source, uint32_t pair) {
  const uint32_t row = gpu::divide(pair, source.by_topk);
  const int64_t at = static_cast<int64_t>(row) * source.row_stride + (pair - row * source.num_topk);
  return source.wide_ids ? static_cast<const int64_t*>(source.ids)[at] : static_cast<const int32_t*>(source.ids)[at];
}

// Several, of pairs `step` apart, so that all loads are on their way at once; those from `end` on are left out.
template <int kCount>
__device__ void read_wide_ids(const PairSource& source, uint32_t first, uint32_t step, uint32_t end,
                              int64_t (&ids)[kCount]) {
  const auto read = [&](auto* from) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const uint32_t pair = first + i * step;
      const uint32_t row = gpu::divide(pair, source.by_topk);
      const int64_t at = static_cast<int64_t>(row) * source.row_stride + (pair - row * source.num_topk);
      ids[i] = pair < end ? from[at] : -1;
    }
  };
  if (source.wide_ids)
    read(static_cast<const int64_t*>(source.ids));
  else
    read(static_cast<const int32_t*>(source.ids));
}

// An id as far as it matters.
__device__ inline int32_t clip_id(int64_t id) {
  return static_cast<int32_t>(min(max(id, static_cast<int64_t>(kAbsent) + 1), static_cast<int64_t>(0x7fffffff)));
}

// Writes a pair's slot, or -1; pairs of rows that do not count are left alone.
__device__ inline void write_pair_slot(const KernelArgs& args, uint32_t pair, bool placed, uint32_t slot) {
  if (!placed && args.source.num_segments > 1 && !in_counted_row(args.source, pair)) return;
  args.out.pair_slots[pair] = placed ? static_cast<int32_t>(slot) : -1;
}

// The id as it lies in memory, kAbsent if the row does not count. kPlain: contiguous i32 ids, no expert map, at most one
// segment; then the caller knows how many pairs count, and loads without a branch so that many are in flight.
template <bool kPlain>
__device__ int32_t load_id(const PairSource& source, uint32_t pair) {
  if constexpr (kPlain) {
    return gpu::load_streaming(static_cast<const int32_t*>(source.ids) + pair);
  } else {
    if (source.num_segments > 1 && !in_counted_row(source, pair)) return kAbsent;
    return clip_id(read_wide_id(source, pair));
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
    if (!kPlain && id == kAbsent) return kNoCode;
    if (id != -1 && !source.bucket) {
      ++faults.count;
      faults.first = min(faults.first, pair);
    }
  }
  return source.bucket ? 0 : kNoCode;
}

}  // namespace mixlane::align_gpu
