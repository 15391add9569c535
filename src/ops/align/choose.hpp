// What "auto" goes by on GPUs: tuned choices, and where there is none a model of each variant's time.
#pragma once

#include "core/tuning.hpp"
#include "mixlane/align.hpp"

namespace mixlane {

// How the ids lie, as far as the time depends on it.
enum class AlignIds : uint8_t {
  i32,     // dense, every expert local, all rows or the first ones count
  i64,     // the same with i64
  window,  // inside received rows: strided, mapped to local experts, or with counts per segment
};
AlignIds align_ids(const AlignArgs& args);

// Variants overtake each other by 10 % within half an octave; a quarter keeps what is chosen for it near the best.
inline constexpr TokenBuckets kAlignBuckets{.steps_per_octave = 4, .most_pairs = 1 << 21};

// Key: experts (the local ones, which are the groups), topk, ids, tokens (rows, as a bucket of pairs).
const TuneSpace& align_tune_space();
PackedKey align_key(const AlignArgs& args);
// Of a context on a GPU.
StageTuning& align_tuning(const Context& context);

double estimate_align_none(const AlignArgs& args, int num_multiprocessors);
double estimate_align_oneshot(const AlignArgs& args, int num_multiprocessors);
double estimate_align_cluster(const AlignArgs& args, int num_multiprocessors);
double estimate_align_multi_phase(const AlignArgs& args, int num_multiprocessors);
double estimate_align_radix(const AlignArgs& args, int num_multiprocessors);

}  // namespace mixlane
