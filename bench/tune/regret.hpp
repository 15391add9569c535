// How far "auto" is from the best variant at a point of a sweep, and the table of a sweep's points.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tune/race.hpp"

namespace mixlane::bench {

// What "auto" may lose at most.
inline constexpr double kAllowedRegret = 0.05;

struct Regret {
  std::vector<std::pair<std::string, double>> median_us;  // by variant
  std::string chosen, modelled;                           // by "auto", and by the model that fills its gaps
  double regret = 0, model_regret = 0;                    // time over the best variant's, minus 1
  int num_rounds = 0;                                     // in which the chosen and the best one took turns
  double low = 0, high = 0;                               // 95 % interval of the regret by these rounds
};

// `result` is of the candidates `ids`, among which are `chosen` and `modelled`.
Regret make_regret(std::span<const std::string> ids, const RaceResult& result, std::string_view chosen,
                   std::string_view modelled);

// The regret by a race, and where that may be more than is allowed by one of many more rounds in its place: of thousands of
// points some look late for a moment.
Regret measure_regret(std::span<const std::string> ids, std::string_view chosen, std::string_view modelled,
                      const std::function<RaceResult(const RaceOptions&)>& race, const RaceOptions& options);

// A point of a sweep as the table has it.
struct RegretCell {
  std::string row;    // the first columns' cells: "256x8 | uniform | 64"; neighbours with the same ones are a row
  std::string point;  // which point of all: "256x8 uniform block=64 tokens=5"
  Regret regret;
};

// Markdown: rows with the worst and the mean regret, all together, and the worst points. `columns`: "shape | ids | block".
std::string regret_table(std::string_view columns, std::span<const RegretCell> cells);

// {"us": {..}, "auto": .., "regret": .., "rounds": .., "regret_95": [.., ..], "model": .., "model_regret": ..}, added to
// what is there.
void add_json(const Regret& regret, nlohmann::ordered_json& json);

}  // namespace mixlane::bench
