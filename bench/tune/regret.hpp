// How far "auto" is from the best variant at a point of a sweep, and the table of a sweep's points.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mixlane::bench {

struct Regret {
  std::vector<std::pair<std::string, double>> median_us;  // by variant
  std::string chosen, modelled;                           // by "auto", and by the model that fills its gaps
  double regret = 0, model_regret = 0;                    // time over the best variant's, minus 1
};

// `chosen` and `modelled` are among the measured.
Regret make_regret(std::vector<std::pair<std::string, double>> median_us, std::string_view chosen,
                   std::string_view modelled);

// A point of a sweep as the table has it.
struct RegretCell {
  std::string row;    // the first columns' cells: "256x8 | uniform | 64"; neighbours with the same ones are a row
  std::string point;  // which point of all: "256x8 uniform block=64 tokens=5"
  Regret regret;
};

// Markdown: rows with the worst and the mean regret, all together, and the worst points. `columns`: "shape | ids | block".
std::string regret_table(std::string_view columns, std::span<const RegretCell> cells);

// {"us": {..}, "auto": .., "regret": .., "model": .., "model_regret": ..}, added to what is there.
void add_json(const Regret& regret, nlohmann::ordered_json& json);

}  // namespace mixlane::bench
