// What "auto" goes by on GPUs: tuned choices, and where there is none a model of each variant's time.
#pragma once

#include "core/tuning.hpp"
#include "mixlane/experts.hpp"

namespace mixlane {

// The size that is tuned for `num_rows`: the most rows whose pairs, K of each, are as many as the next power of two, at most
// 262144, which stands for all above. Choices change slowly, and a size costs seconds.
int64_t experts_bucket(int64_t num_rows, int64_t num_topk);

// Key: quant, experts (of the call), hidden, intermediate, topk, tokens (experts_bucket). How many of the pairs
// are this rank's experts' is not known on the host; with as many experts and rows it is much the same from call to call.
const TuneSpace& experts_tune_space();
PackedKey experts_key(const ExpertsArgs& args);
// Of a context on a GPU.
StageTuning& experts_tuning(const Context& context);

// Of the variants that are no configuration of experts.wgmma (wgmma/config.hpp).
double estimate_experts_mma(const ExpertsArgs& args, int num_multiprocessors);

}  // namespace mixlane
