#include "ops/experts/wgmma/config.hpp"

#include <algorithm>
#include <cmath>

#include "core/math.hpp"
#include "ops/quant/formats.hpp"

namespace mixlane {
namespace {

constexpr double kWideTokens = 128;  // rows of a wide tile
constexpr int64_t kTileRows = 256;   // weight rows of a tile; with a gate two make an output
constexpr double kAddedLaunchUs = 3;

// Of one multiprocessor, but for the bytes; fitted by least squares of the logarithm to the times of
// tuned/experts.sm_90-132.json (one H200), those of e2m1 weights to docs/results/experts-h200.md. What matters is where two
// configurations cross.
struct Costs {
  double weight_bytes;            // per value, scales included
  int64_t stage_depth;            // of k
  double narrow_limit;            // rows of an expert up to which its tiles are narrow
  double full_narrow;             // rows of a narrow tile where there are several
  double stage_ns, stage_row_ns;  // of a narrow tile, and per row of it
  double wide_stage_ns;           // 0: there are no wide tiles
  double tile_ns, wide_tile_ns;   // beside a tile's stages
  double gbytes_per_s;            // of the whole GPU
  double launch_us;               // until the first stage is there, and after the last one
  double both_factor;             // of the products where one launch makes both
  double doubt;                   // of configurations that are not the first one: what they must be ahead by
};
constexpr double kTailTiles = 0.08;  // of a launch's last tiles, that not all multiprocessors have

const Costs& costs_of(QuantFormat format) {
  static constexpr Costs kBf16{2, 64, 96, 64, 323, 4.0, 799, 1900, 3200, 4080, 9, 1, 1.005};
  static constexpr Costs kFp8{1, 128, 64, 64, 481, 3.3, 966, 4150, 3600, 4080, 14, 1.015, 1.005};
  static constexpr Costs kFp8Channel{1, 128, 64, 64, 199, 5.7, 870, 3700, 6000, 4000, 22, 1, 1};
  static constexpr Costs kMxfp4{0.53125, 128, 64, 64, 730, 16, 1790, 3000, 3200, 4000, 16, 1, 1};
  static constexpr Costs kMxfp4Fp8{0.53125, 128, 64, 64, 712, 7, 1420, 3000, 3200, 4000, 16, 1, 1};
  switch (format) {
    case QuantFormat::none: return kBf16;
    case QuantFormat::fp8_block: return kFp8;
    case QuantFormat::fp8_channel: return kFp8Channel;
    case QuantFormat::mxfp4: return kMxfp4;
    case QuantFormat::mxfp4_fp8: return kMxfp4Fp8;
  }
  return kBf16;
}

// Of an expert with `rows`: a last tile is half full on average.
double num_tiles(double rows, double full) { return std::max(1.0, rows / full + 0.5 * std::min(1.0, rows / full)); }

// How the experts that have rows, `rows` of them on average, are cut into tiles.
struct Cut {
  Cut(const Costs& costs, bool has_wide, double rows) {
    // Random row counts spread by their root.
    const double above = 0.5 * std::erfc((costs.narrow_limit - rows) / std::sqrt(2 * rows));
    if (has_wide) {
      narrow = 1 - above;
      width = std::min(rows, costs.narrow_limit);
      wide = above * num_tiles(rows, kWideTokens);
    } else {
      narrow = 1 - above + above * num_tiles(rows, costs.full_narrow);
      width = rows / narrow;
    }
  }
  double narrow, wide = 0;  // tiles per expert and tile of weights
  double width;             // rows of a narrow one
};

// A product of `depth` that gives `outputs`, each of `parts` weight rows.
struct Product {
  Product(const Costs& costs, const Cut& cut, int64_t depth, int64_t outputs, int64_t parts) {
    const auto steps = static_cast<double>(ceil_div(depth, costs.stage_depth));
    const double narrow_us = 1e-3 * (steps * (costs.stage_ns + costs.stage_row_ns * cut.width) + costs.tile_ns);
    const double wide_us = 1e-3 * (steps * costs.wide_stage_ns + costs.wide_tile_ns);
    us_per_expert =
        static_cast<double>(ceil_div(outputs * parts, kTileRows)) * (cut.narrow * narrow_us + cut.wide * wide_us);
    tile_us = (cut.narrow * narrow_us + cut.wide * wide_us) / (cut.narrow + cut.wide);
  }
  double us_per_expert, tile_us;
};

}  // namespace

WgmmaShape wgmma_shape(const ExpertsArgs& args, int num_multiprocessors) {
  const ExpertWeights& w = args.weights;
  const auto rows = static_cast<double>(args.rows.shape[0]);
  const double topk = args.num_topk;
  const double local = args.sorted_pairs.given() ? std::min(1.0, w.num_experts / (3 * topk * topk)) : 1 / topk;
  return {.format = w.format,
          .gated = args.activation.gated(),
          .num_experts = w.num_experts,
          .hidden = w.hidden,
          .intermediate = w.intermediate,
          .num_pairs = rows * topk * local,
          .num_multiprocessors = num_multiprocessors};
}

double touched_experts(const WgmmaShape& shape) {
  const auto experts = static_cast<double>(std::max<int64_t>(shape.num_experts, 1));
  return experts * (1 - std::pow(1 - 1 / experts, std::max(shape.num_pairs, 1.0)));
}

int num_wgmma_launches(QuantFormat format, WgmmaConfig config) {
  // fp8_channel: the scale of a whole activated row needs a pass between the products. e2m1 weights: kernels of one product
  // have registers for the decoding that one for both has not.
  const bool needs_two = format == QuantFormat::fp8_channel || has_mx_weights(format);
  return needs_two || config.launches == WgmmaConfig::Launches::two ? 2 : 1;
}

std::string refuse_wgmma_config(QuantFormat format, WgmmaConfig config) {
  if (config.tiles == WgmmaConfig::Tiles::narrow && has_mx_weights(format))
    return "wide tiles of e2m1 weights are ahead wherever an expert has more rows than a narrow one takes";
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

// Launches, then the larger of reading weights and multiplying, each in the other's shadow but for where they are much the
// same; then what the last tiles leave idle.
double estimate_wgmma_us(const WgmmaShape& shape, WgmmaConfig config) {
  const Costs& costs = costs_of(shape.format);
  const double pairs = std::max(shape.num_pairs, 1.0), touched = touched_experts(shape);
  const bool wide = config.tiles == WgmmaConfig::Tiles::wide && costs.wide_stage_ns > 0;
  // A gate's scales of 128x128 are those of wide tiles only where outputs come in groups of 128 (has_wide_tiles).
  const bool first_wide = wide && !(shape.format == QuantFormat::fp8_block && shape.gated && shape.intermediate % 128 != 0);
  const int64_t parts = shape.gated ? 2 : 1;
  const Product first(costs, Cut(costs, first_wide, pairs / touched), shape.hidden, shape.intermediate, parts);
  const Product down(costs, Cut(costs, wide, pairs / touched), shape.intermediate, shape.hidden, 1);

  const double values =
      static_cast<double>(shape.hidden) * static_cast<double>(shape.intermediate) * static_cast<double>(parts + 1);
  const double share = shape.num_multiprocessors / 132.0;
  const double memory_us = 1e-3 * (touched * values * costs.weight_bytes + pairs * static_cast<double>(shape.hidden) * 4) /
                           (costs.gbytes_per_s * share);
  const bool both = num_wgmma_launches(shape.format, config) == 1;
  const double products_us =
      touched * (first.us_per_expert + down.us_per_expert) * (both ? costs.both_factor : 1) / shape.num_multiprocessors;
  const double most = std::max(memory_us, products_us), least = std::min(memory_us, products_us);
  const double busy_us = most * std::pow(1 + std::pow(least / most, 6), 1.0 / 6);
  const double tail_us = kTailTiles * (down.tile_us + (both ? 0 : first.tile_us));
  // fp8_channel and e2m1 have both launches in launch_us.
  const bool added = config.launches == WgmmaConfig::Launches::two;
  return (costs.launch_us + (added ? kAddedLaunchUs : 0) + busy_us + tail_us) * (config == WgmmaConfig{} ? 1 : costs.doubt);
}

WgmmaConfig pick_wgmma_config(const WgmmaShape& shape) {
  const std::vector<WgmmaConfig> candidates = wgmma_candidates(shape.format);
  return *std::min_element(candidates.begin(), candidates.end(), [&](WgmmaConfig a, WgmmaConfig b) {
    return estimate_wgmma_us(shape, a) < estimate_wgmma_us(shape, b);
  });
}

}  // namespace mixlane
