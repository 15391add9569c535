// Is a GPU's routing right? It computes scores in f32, the CPU's in f64 rounded to f32: experts whose scores are neighbours
// may come in another order.
#pragma once

#include <span>
#include <vector>

#include "mixlane/routing.hpp"

namespace mixlane::bench {

struct RoutingAnswer {
  std::vector<int64_t> ids;    // [T, K]
  std::vector<float> weights;  // [T, K]
};

struct RoutingDifference {
  int64_t num_wrong_ids = 0;  // of tokens whose choice no near tie explains
  int64_t num_near_ties = 0;  // tokens whose choice differs by a near tie; their weights are not compared
  double weight_error = 0;    // largest relative difference; infinite if one is no finite number
};

// `logits` [T, E + Z] of `dtype`; `bias` [E + Z] or empty. A near tie: places whose two experts' choices lie within two
// units in the last place; where groups are limited, also an expert of a group whose score lies as close to the last open
// group's.
RoutingDifference compare_routing(const RoutingConfig& config, const ConstTensorView& logits, std::span<const float> bias,
                                  const RoutingAnswer& expected, const RoutingAnswer& got);

}  // namespace mixlane::bench
