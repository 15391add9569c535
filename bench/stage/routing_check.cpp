#include "stage/routing_check.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace mixlane::bench {
namespace {

double relative_error(float got, float expected) {
  const double error = std::abs(double{got} - expected) / std::max(std::abs(double{expected}), 1e-30);
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

}  // namespace

RoutingDifference compare_routing(const RoutingAnswer& expected, const RoutingAnswer& got) {
  RoutingDifference difference;
  for (size_t i = 0; i < expected.ids.size(); ++i) {
    difference.num_wrong_ids += expected.ids[i] != got.ids[i];
    difference.weight_error = std::max(difference.weight_error, relative_error(got.weights[i], expected.weights[i]));
  }
  return difference;
}

}  // namespace mixlane::bench
