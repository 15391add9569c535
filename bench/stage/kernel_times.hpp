// Where the time of a call goes: its kernels by the profiler, attributed to variants.
#pragma once

#include <span>

#include "profile/kernel_profile.hpp"
#include "results/record.hpp"

namespace mixlane::bench {

// Per call of `num_calls`: the time of all kernels of each variant in the order of their first ones, and last, with an empty
// variant, of those that belong to none. `known`: the ids to look for. Pure.
std::vector<KernelTime> attribute_kernels(const KernelProfile& profile, std::span<const std::string> known, int num_calls);

}  // namespace mixlane::bench
