#include "tune/regret.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/format.hpp"
#include "stats/stats.hpp"

namespace mixlane::bench {
namespace {

constexpr size_t kWorst = 12;
constexpr double kDoubtful = 0.03;  // above, a race of a few rounds does not tell on which side of the allowed it is
constexpr int kSureRounds = 60;

struct RegretSum {
  double most = 0, sum = 0, model_most = 0, model_sum = 0;
  int count = 0;
  int num_above = 0;  // what is allowed

  void add(const Regret& point) {
    most = std::max(most, point.regret);
    sum += point.regret;
    model_most = std::max(model_most, point.model_regret);
    model_sum += point.model_regret;
    ++count;
    num_above += point.regret > kAllowedRegret ? 1 : 0;
  }
  std::string cells() const {
    const double n = std::max(count, 1);
    return fmt::format("{} | {:.1f} % | {:.2f} % | {:.1f} % | {:.2f} %", count, 100 * most, 100 * sum / n, 100 * model_most,
                       100 * model_sum / n);
  }
};

std::string point_text(const RegretCell& cell) {
  std::string times;
  for (const auto& [id, us] : cell.regret.median_us) times += fmt::format("{}{} {:.2f}", times.empty() ? "" : ", ", id, us);
  const Regret& r = cell.regret;
  return fmt::format("| {} | {} | {:.1f} % | {:.1f} to {:.1f} %, {} | {} |\n", cell.point, r.chosen, 100 * r.regret,
                     100 * r.low, 100 * r.high, r.num_rounds, times);
}

}  // namespace

Regret make_regret(std::span<const std::string> ids, const RaceResult& result, std::string_view chosen,
                   std::string_view modelled) {
  const auto index_of = [&](std::string_view id) {
    const auto found = std::find(ids.begin(), ids.end(), id);
    if (found == ids.end()) fail(ErrorCode::internal, "{} was chosen and not measured", id);
    return static_cast<size_t>(found - ids.begin());
  };
  const std::vector<double>& us = result.median_us;
  const auto best = static_cast<size_t>(std::min_element(us.begin(), us.end()) - us.begin());
  const size_t ours = index_of(chosen);
  Regret point;
  point.chosen = chosen;
  point.modelled = modelled;
  for (size_t i = 0; i < ids.size(); ++i) point.median_us.emplace_back(ids[i], us[i]);
  point.regret = us[ours] / us[best] - 1;
  point.model_regret = us[index_of(modelled)] / us[best] - 1;
  std::vector<double> ratios;
  const auto &own_samples = result.samples_us[ours], &best_samples = result.samples_us[best];
  for (size_t round = 0; round < std::min(own_samples.size(), best_samples.size()); ++round)
    ratios.push_back(own_samples[round] / best_samples[round] - 1);
  point.num_rounds = static_cast<int>(ratios.size());
  const Interval interval = median_interval(ratios);
  point.low = interval.low;
  point.high = interval.high;
  return point;
}

Regret measure_regret(std::span<const std::string> ids, std::string_view chosen, std::string_view modelled,
                      const std::function<RaceResult(const RaceOptions&)>& race, const RaceOptions& options) {
  const Regret first = make_regret(ids, race(options), chosen, modelled);
  if (first.regret <= kDoubtful && first.high <= kAllowedRegret) return first;
  RaceOptions longer = options;
  longer.rounds = kSureRounds;
  return make_regret(ids, race(longer), chosen, modelled);
}

std::string regret_table(std::string_view columns, std::span<const RegretCell> cells) {
  std::string text =
      fmt::format("| {} | points | auto, worst | auto, mean | model alone, worst | model alone, mean |\n", columns);
  const auto num_columns = std::count(columns.begin(), columns.end(), '|') + 1;
  for (int i = 0; i < num_columns + 5; ++i) text += "|---";
  text += "|\n";
  RegretSum all;
  for (size_t i = 0; i < cells.size();) {
    const std::string& row = cells[i].row;
    RegretSum sum;
    for (; i < cells.size() && cells[i].row == row; ++i) {
      sum.add(cells[i].regret);
      all.add(cells[i].regret);
    }
    text += fmt::format("| {} | {} |\n", row, sum.cells());
  }
  text += "| all ";
  for (int i = 1; i < num_columns; ++i) text += "| ";
  text += fmt::format(
      "| {} |\n\nauto is more than {:.0f} % behind the best variant at {} of {} points\n\n"
      "| worst points of auto | chosen | regret | 95 % interval, rounds | median us of each variant "
      "|\n|---|---|---|---|---|\n",
      all.cells(), 100 * kAllowedRegret, all.num_above, all.count);
  std::vector<const RegretCell*> worst;
  for (const RegretCell& cell : cells) worst.push_back(&cell);
  std::stable_sort(worst.begin(), worst.end(),
                   [](const auto* a, const auto* b) { return a->regret.regret > b->regret.regret; });
  worst.resize(std::min(worst.size(), kWorst));
  for (const RegretCell* cell : worst) text += point_text(*cell);
  return text;
}

void add_json(const Regret& regret, nlohmann::ordered_json& json) {
  nlohmann::ordered_json us;
  for (const auto& [id, median] : regret.median_us) us[id] = median;
  json["us"] = us;
  json["auto"] = regret.chosen;
  json["regret"] = regret.regret;
  json["rounds"] = regret.num_rounds;
  json["regret_95"] = {regret.low, regret.high};
  json["model"] = regret.modelled;
  json["model_regret"] = regret.model_regret;
}

}  // namespace mixlane::bench
