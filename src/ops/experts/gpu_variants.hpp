// The GPU variants: running a call that is valid and not refused.
#pragma once

#include <string>

#include "mixlane/experts.hpp"

namespace mixlane::experts_gpu {

std::string refuse_mma(const Context& context, const ExpertsArgs& args);
void run_mma(Context& context, const ExpertsArgs& args, Stream stream);

#if !defined(MIXLANE_HIP)
std::string refuse_wgmma(const Context& context, const ExpertsArgs& args);
std::string refuse_wgmma_narrow(const Context& context, const ExpertsArgs& args);
void run_wgmma(Context& context, const ExpertsArgs& args, Stream stream);
void run_wgmma_narrow(Context& context, const ExpertsArgs& args, Stream stream);
#endif

}  // namespace mixlane::experts_gpu
