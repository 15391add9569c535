// Received rows in expert_major order, for grouped GEMMs that can't gather. Mixlane's own experts stage does not need it.
#pragma once

#include <string_view>

#include "mixlane/core.hpp"

namespace mixlane {

// Slots, their order and their alignment are those of an align (mixlane/align.hpp, `block` = the alignment) over the
// received rows; combine takes what the experts make of them with that align's pair_slots.
struct ExpertMajorArgs {
  ConstTensorView rows{};         // any dtype [R, H], rows may be strided: ReceivedRows::rows
  ConstTensorView scales{};       // optional f32 [R, S], rows may be strided: ReceivedRows::scales
  ConstTensorView sorted_rows{};  // i32 [capacity] from align: row per slot, >= R in pads
  ConstTensorView num_padded{};   // i32 [2] from align; slots behind num_padded[0] are not written
  TensorView output{};            // dtype of rows, [capacity, H]; pads are zero
  TensorView output_scales{};     // f32 [capacity, S], with scales
  std::string_view variant = "auto";
};

// One copy per (row, local expert). No host synchronisation, graph-safe, deterministic. On GPUs a row's bytes, strides and
// addresses must be multiples of 16; others are refused as unsupported. Variants: expert_major.cpu, expert_major.gather.
void expert_major(Context& context, const ExpertMajorArgs& args, Stream stream = {});

}  // namespace mixlane
