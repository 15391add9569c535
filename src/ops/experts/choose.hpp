// What "auto" goes by on GPUs: tuned choices, and where there is none a model of each variant's time.
#pragma once

#include "core/tuning.hpp"
#include "mixlane/experts.hpp"

namespace mixlane {

// Choices change slowly, and a size costs seconds.
inline constexpr TokenBuckets kExpertsBuckets{.steps_per_octave = 1, .most_pairs = 1 << 18};

// Key: quant, experts (of the call), hidden, intermediate, topk, tokens (rows, as a bucket of pairs). How many of the pairs
// are this rank's experts' is not known on the host; with as many experts and rows it is much the same from call to call.
const TuneSpace& experts_tune_space();
PackedKey experts_key(const ExpertsArgs& args);
// Of a context on a GPU.
StageTuning& experts_tuning(const Context& context);

// Of the variants that are no configuration of experts.wgmma (wgmma/config.hpp).
double estimate_experts_mma(const ExpertsArgs& args, int num_multiprocessors);

}  // namespace mixlane
