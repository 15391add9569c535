// The GPU variants of a build without a GPU backend.
#include "ops/routing/op.hpp"

namespace mixlane {

std::span<const Variant<RoutingArgs>> routing_gpu_variants() { return {}; }

}  // namespace mixlane
