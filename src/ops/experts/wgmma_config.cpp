#include "ops/experts/wgmma_config.hpp"

#include <algorithm>
#include <cmath>

#include "ops/quant/formats.hpp"

namespace mixlane {

WgmmaShape wgmma_shape(const ExpertsArgs& args, int num_multiprocessors) {
  const ExpertWeights& w = args.weights;
  return {.format = w.format,
          .gated = args.activation.gated(),
          .num_experts = w.num_experts,
          .hidden = w.hidden,
          .intermediate = w.intermediate,
          .num_rows = args.rows.shape[0],
          .num_topk = args.num_topk,
          .num_multiprocessors = num_multiprocessors};
}

int num_wgmma_launches(QuantFormat format, WgmmaConfig config) {
  // The scale of a whole activated row needs a pass between the products; who decodes e2m1 weights, all registers.
  const bool needs_two = format == QuantFormat::fp8_channel || has_mx_weights(format);
  return needs_two || config.launches == WgmmaConfig::Launches::two ? 2 : 1;
}

std::string refuse_wgmma_config(QuantFormat format, WgmmaConfig config) {
  if (config.tiles == WgmmaConfig::Tiles::narrow && has_mx_weights(format))
    return "experts.wgmma decodes e2m1 weights for wide tiles or for narrow ones by the rows that there are";
  if (config.launches == WgmmaConfig::Launches::two && num_wgmma_launches(format, {}) == 2)
    return "experts.wgmma takes two launches of this format: it is the same";
  return "";
}

std::vector<WgmmaConfig> wgmma_candidates(QuantFormat format) {
  std::vector<WgmmaConfig> candidates;
  for (const NamedWgmmaConfig& named : kWgmmaConfigs)
    if (refuse_wgmma_config(format, named.config).empty()) candidates.push_back(named.config);
  return candidates;
}

double estimate_wgmma_us(const WgmmaShape& shape, WgmmaConfig config) {
  const double pairs = static_cast<double>(shape.num_rows) * shape.num_topk;
  return 24.0 + pairs * 1e-3 + (config == WgmmaConfig{} ? 0 : 1);
}

WgmmaConfig pick_wgmma_config(const WgmmaShape& shape) {
  const std::vector<WgmmaConfig> candidates = wgmma_candidates(shape.format);
  return *std::min_element(candidates.begin(), candidates.end(), [&](WgmmaConfig a, WgmmaConfig b) {
    return estimate_wgmma_us(shape, a) < estimate_wgmma_us(shape, b);
  });
}

}  // namespace mixlane
