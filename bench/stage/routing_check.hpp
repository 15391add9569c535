// Is a GPU's routing right? The same ids as the CPU's, and weights that only the order of f32 sums tells apart.
#pragma once

#include <cstdint>
#include <vector>

namespace mixlane::bench {

struct RoutingAnswer {
  std::vector<int64_t> ids;    // [T, K]
  std::vector<float> weights;  // [T, K]
};

struct RoutingDifference {
  int64_t num_wrong_ids = 0;
  double weight_error = 0;  // largest relative difference; infinite if one is no finite number
};

// Both of the same T and K.
RoutingDifference compare_routing(const RoutingAnswer& expected, const RoutingAnswer& got);

}  // namespace mixlane::bench
