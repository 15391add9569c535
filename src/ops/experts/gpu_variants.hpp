// The GPU variants: running a call that is valid and not refused.
#pragma once

#include <string>

#include "mixlane/experts.hpp"
#include "ops/experts/wgmma/config.hpp"

namespace mixlane::experts_gpu {

std::string refuse_mma(const Context& context, const ExpertsArgs& args);
void run_mma(Context& context, const ExpertsArgs& args, Stream stream);

#if !defined(MIXLANE_HIP)
std::string refuse_wgmma(const Context& context, const ExpertsArgs& args, WgmmaConfig config);
void run_wgmma(Context& context, const ExpertsArgs& args, WgmmaConfig config, Stream stream);
#endif

}  // namespace mixlane::experts_gpu
