// MoE align & sort: group (token, k) pairs by expert and pad every group to whole blocks.
#pragma once

#include "mixlane/core.hpp"

namespace mixlane {

enum class InvalidIds : uint8_t {
  drop,    // pairs whose id is < 0, >= num_experts or unmapped vanish; ids < -1 or >= num_experts are reported as well
  bucket,  // they form a group of their own that comes first and has expert id -1 (SGLang's "+1 offset")
};

// Pair p = row * K + k. Groups come in ascending local expert order (after the invalid bucket, if any); inside a group
// pairs ascend, so the result is the stable sort of the pairs by expert. Every non-empty group is padded to a multiple
// of `block` slots with `pad_value`; empty groups take no block.
struct AlignArgs {
  ConstTensorView topk_ids{};      // i32|i64 [rows, K]; rows may be strided: the ids may lie inside received rows
  ConstTensorView segment_rows{};  // optional i32 [S], S dividing rows: only the first segment_rows[s] rows of segment s
                                   // count. S = 1 is a device-side row count; S = num_ranks reads a receive window.
  ConstTensorView expert_map{};    // optional i32 [num_experts]: local id or -1; local ids are < num_local_experts
  int num_experts = 0;             // ids are in [0, num_experts); 1..65535
  int num_local_experts = 0;       // groups; 0 = num_experts. Equal to num_experts without expert_map.
  int block = 1;                   // rows per block, 1..1024
  InvalidIds invalid_ids = InvalidIds::drop;
  int32_t pad_value = -1;          // what a pad slot of sorted_pairs holds; -1 = rows * K (the engines' sentinel)
  ConstTensorView topk_weights{};  // f32 [rows, K], required with sorted_weights

  TensorView sorted_pairs{};    // out i32 [capacity]: pair per slot; written up to num_padded_slots, never behind it
  TensorView block_experts{};   // optional out i32 [capacity / block]: local expert per block; -1 for the bucket and for
                                // the tail up to the end of the tensor
  TensorView num_padded{};      // out i32 [2]: padded slots, pairs kept (without the bucket)
  TensorView expert_counts{};   // optional out i32 [num_local_experts]: pairs per group
  TensorView expert_offsets{};  // optional out i32 [num_local_experts + 1]: first slot of each group, then the end
  TensorView
      pair_slots{};  // optional out i32 [rows, K]: slot of each pair, -1 if dropped; rows that do not count are not written
  TensorView sorted_weights{};  // optional out f32 [capacity]: weight per slot, 0 in pads
  TensorView sorted_rows{};     // optional out i32 [capacity]: row per slot (pair / K), `rows` in pads
  TensorView
      sorted_packed{};     // optional out i32 [capacity]: row | k << 24, pads rows | K << 24 (aiter); rows < 2^24, K < 128
  TensorView zero_fill{};  // optional: any contiguous tensor, zeroed in the same call (for accumulating GEMMs)

  Status* status = nullptr;  // receives bad_expert_id with the first such pair's row; nullptr: thrown (CPU only)
  std::string_view variant = "auto";  // or a variant's id; align_variant(policy) says it in the engines' numbers
};

// Policy 0: "auto", the tuned choice for the shape (mixlane/tuning.hpp); 1: "align.oneshot"; 2: "align.multi_phase". As with
// every id, what the variant can't take is refused. Throws invalid_argument for other numbers.
std::string_view align_variant(int policy);

// Slots that `sorted_pairs` must hold in the worst case: every group's last block nearly empty.
int64_t align_capacity(int64_t num_pairs, int num_groups, int block);

// Deterministic; no atomics on shared counters; graph-safe. CPU variants: align.cpu. GPU variants: align.none (few
// pairs), align.oneshot, align.cluster (sm_90), align.multi_phase (up to 1028 groups), align.radix (any number).
// Contract = the union of what SGLang, vLLM and aiter's align kernels offer: docs/stages/align.md.
void align(Context& context, const AlignArgs& args, Stream stream = {});

}  // namespace mixlane
