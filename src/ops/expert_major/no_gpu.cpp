// The GPU variants of a build without a GPU backend.
#include "ops/expert_major/op.hpp"

namespace mixlane {

std::span<const Variant<ExpertMajorArgs>> expert_major_gpu_variants() { return {}; }

}  // namespace mixlane
