// The inside of routing: sizes, cost and the table of variants. The contract is in mixlane/routing.hpp.
#pragma once

#include <span>
#include <vector>

#include "core/registry.hpp"
#include "mixlane/routing.hpp"
#include "ops/cost.hpp"

namespace mixlane {

inline constexpr int kMaxRoutingExperts = 1024;  // real ones; as many zero experts may follow
inline constexpr int kMaxTopk = 32;

// Throws invalid_argument. Looks at shapes and options only; what lies in tensors is checked by the variants.
void validate(const Context& context, const RoutingArgs& args);

// For rows that are all valid; a device-side row count lowers it in proportion.
Cost routing_cost(const RoutingArgs& args);

std::vector<VariantInfo> routing_variants();

// The one that runs.
const Variant<RoutingArgs>& select_routing(const Context& context, const RoutingArgs& args);

// Variants
std::span<const Variant<RoutingArgs>> routing_gpu_variants();  // none in a build without a GPU backend
void launch_routing_cpu(Context& context, const RoutingArgs& args, Stream stream);

}  // namespace mixlane
