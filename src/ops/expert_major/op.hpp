// The inside of expert_major: the table of variants. The contract is in mixlane/expert_major.hpp.
#pragma once

#include "core/registry.hpp"
#include "mixlane/expert_major.hpp"

namespace mixlane {

void launch_expert_major_cpu(Context& context, const ExpertMajorArgs& args, Stream stream);
// Of this build; none without a GPU backend.
std::span<const Variant<ExpertMajorArgs>> expert_major_gpu_variants();

}  // namespace mixlane
