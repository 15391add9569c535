// What "auto" goes by on GPUs: tuned choices, and where there is none a model of each variant's time.
#pragma once

#include "core/tuning.hpp"
#include "mixlane/experts.hpp"

namespace mixlane {

// Key: quant, experts (of the call), hidden, intermediate, topk, tokens (rows, as a bucket of pairs). How many of the pairs
// are this rank's experts' is not known on the host; with as many experts and rows it is much the same from call to call.
const TuneSpace& experts_tune_space();
PackedKey experts_key(const ExpertsArgs& args);
// Of a context on a GPU.
StageTuning& experts_tuning(const Context& context);

double estimate_experts_wgmma(const ExpertsArgs& args, int num_multiprocessors);
double estimate_experts_wgmma_narrow(const ExpertsArgs& args, int num_multiprocessors);
double estimate_experts_mma(const ExpertsArgs& args, int num_multiprocessors);

}  // namespace mixlane
