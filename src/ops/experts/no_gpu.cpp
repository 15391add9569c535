// The GPU variants of a build without a GPU backend.
#include "ops/experts/op.hpp"

namespace mixlane {

std::span<const Variant<ExpertsArgs>> experts_gpu_variants() { return {}; }

}  // namespace mixlane
