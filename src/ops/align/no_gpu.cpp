// The GPU variants of a build without a GPU backend.
#include "ops/align/op.hpp"

namespace mixlane {

std::span<const Variant<AlignArgs>> align_gpu_variants() { return {}; }

}  // namespace mixlane
