// What the host decides about experts.wgmma's kernels: a configuration, and which one serves a call where nothing was
// measured.
//
//   a call in numbers -> candidates -> a time for each -> the one with the lowest
//
// Every candidate is a variant with an id of its own, so that a tuned table (choose.hpp), `variant` and the benchmark name
// it.
#pragma once

#include <array>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mixlane/experts.hpp"

namespace mixlane {

// What the host knows of a call. Row counts of experts are known on the device alone.
struct WgmmaShape {
  QuantFormat format = QuantFormat::none;
  bool gated = true;
  int64_t num_experts = 0;  // of this rank
  int64_t hidden = 0, intermediate = 0;
  int64_t num_rows = 0;  // of `rows`, which is a bound where a window has been received
  int num_topk = 1;
  int num_multiprocessors = 132;
};
WgmmaShape wgmma_shape(const ExpertsArgs& args, int num_multiprocessors);

struct WgmmaConfig {
  enum class Launches : uint8_t {
    fewest,  // one, unless the format wants two
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

// All there are, the simpler ones first.
struct NamedWgmmaConfig {
  std::string_view id, summary;
  WgmmaConfig config;
};
inline constexpr std::array<NamedWgmmaConfig, 4> kWgmmaConfigs{{
    {"experts.wgmma", "Hopper's warpgroup products, both in one persistent launch; every format", {}},
    {"experts.wgmma_narrow",
     "the same with tiles of at most 96 rows (fp8: 64), the weights on the left",
     {WgmmaConfig::Launches::fewest, WgmmaConfig::Tiles::narrow}},
    {"experts.wgmma_two_launches",
     "experts.wgmma with a launch for each product",
     {WgmmaConfig::Launches::two, WgmmaConfig::Tiles::wide}},
    {"experts.wgmma_narrow_two_launches",
     "experts.wgmma_narrow with a launch for each product",
     {WgmmaConfig::Launches::two, WgmmaConfig::Tiles::narrow}},
}};

// 1 or 2.
int num_wgmma_launches(QuantFormat format, WgmmaConfig config);
// Why a configuration is none of its own for a format: another id does the same. Empty if it is a candidate.
std::string refuse_wgmma_config(QuantFormat format, WgmmaConfig config);
// Of kWgmmaConfigs those that are not refused; the first one is there for every format.
std::vector<WgmmaConfig> wgmma_candidates(QuantFormat format);
// About how long a call takes. Finite and above 0 for every shape, and no less for more rows.
double estimate_wgmma_us(const WgmmaShape& shape, WgmmaConfig config);
// The candidate with the lowest estimate; ties go to the simpler one.
WgmmaConfig pick_wgmma_config(const WgmmaShape& shape);

}  // namespace mixlane
