// What the host decides about experts.wgmma's kernels: a configuration, and which one serves a call where nothing was
// measured.
//
//   a call in numbers -> candidates -> a time for each -> the one with the lowest
//
// Every candidate is a variant with an id of its own, so that a tuned table (choose.hpp), `variant` and the benchmark name
// it.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "mixlane/experts.hpp"

namespace mixlane {

// What the host knows of a call.
struct WgmmaShape {
  QuantFormat format = QuantFormat::none;
  bool gated = true;
  int64_t num_experts = 0;  // of this rank
  int64_t hidden = 0, intermediate = 0;
  double num_pairs = 0;  // of these experts, as many as the host expects
  int num_multiprocessors = 132;
};
// How many pairs are local is known on the device alone, and how many ranks there are not at all. Routers that choose K have
// about 3 K^2 experts (Mixtral 2 of 8, gpt-oss 4 of 32 and of 128, DeepSeek-V3 and Qwen3 8 of 256 and of 128): with fewer,
// the others are taken to be on other ranks.
WgmmaShape wgmma_shape(const ExpertsArgs& args, int num_multiprocessors);

// Experts that have rows, on average, if pairs choose theirs at random.
double touched_experts(const WgmmaShape& shape);

struct WgmmaConfig {
  enum class Launches : uint8_t {
    fewest,  // one, but two of formats that want two
    two,     // one for each product
  };
  enum class Tiles : uint8_t {
    wide,    // 128 tokens as the left operand where an expert has many, else the weights
    narrow,  // always the weights
  };
  Launches launches = Launches::fewest;
  Tiles tiles = Tiles::wide;

  friend bool operator==(const WgmmaConfig&, const WgmmaConfig&) = default;
};

// All there are, the simpler ones first. Narrow tiles in two launches were never ahead.
struct NamedWgmmaConfig {
  std::string_view id, summary;
  WgmmaConfig config;
};
inline constexpr std::array<NamedWgmmaConfig, 3> kWgmmaConfigs{{
    {"experts.wgmma",
     "Hopper's warpgroup products, persistent, both in one launch but for fp8_channel and e2m1 weights",
     {}},
    {"experts.wgmma_narrow",
     "the same with tiles of at most 96 rows (fp8: 64), the weights on the left",
     {WgmmaConfig::Launches::fewest, WgmmaConfig::Tiles::narrow}},
    {"experts.wgmma_two_launches",
     "experts.wgmma with a launch for each product",
     {WgmmaConfig::Launches::two, WgmmaConfig::Tiles::wide}},
}};

// 1 or 2.
int num_wgmma_launches(QuantFormat format, WgmmaConfig config);
// Why a configuration is none of its own for a format: another id does the same. Empty if it is a candidate.
std::string refuse_wgmma_config(QuantFormat format, WgmmaConfig config);
// Of kWgmmaConfigs those that are not refused; the first one is there for every format.
std::vector<WgmmaConfig> wgmma_candidates(QuantFormat format);
// About how long a call takes. Finite and above 0 for every shape with experts, and no less for more pairs (by
// half a percent, where tiles change).
double estimate_wgmma_us(const WgmmaShape& shape, WgmmaConfig config);
// The candidate with the lowest estimate; ties go to the simpler one.
WgmmaConfig pick_wgmma_config(const WgmmaShape& shape);

}  // namespace mixlane
