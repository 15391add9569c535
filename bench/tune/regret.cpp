#include "tune/regret.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/format.hpp"

namespace mixlane::bench {
namespace {

constexpr size_t kWorst = 12;
constexpr double kAllowed = 0.05;

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
    num_above += point.regret > kAllowed ? 1 : 0;
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
  return fmt::format("| {} | {} | {:.1f} % | {} |\n", cell.point, cell.regret.chosen, 100 * cell.regret.regret, times);
}

}  // namespace

Regret make_regret(std::vector<std::pair<std::string, double>> median_us, std::string_view chosen,
                   std::string_view modelled) {
  Regret point{std::move(median_us), std::string(chosen), std::string(modelled)};
  double best = 1e30;
  for (const auto& [id, us] : point.median_us) best = std::min(best, us);
  const auto regret_of = [&](std::string_view id) {
    for (const auto& [measured, us] : point.median_us)
      if (measured == id) return us / best - 1;
    fail(ErrorCode::internal, "{} was chosen and not measured", id);
  };
  point.regret = regret_of(chosen);
  point.model_regret = regret_of(modelled);
  return point;
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
      "| worst points of auto | chosen | regret | median us of each variant |\n|---|---|---|---|\n",
      all.cells(), 100 * kAllowed, all.num_above, all.count);
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
  json["model"] = regret.modelled;
  json["model_regret"] = regret.model_regret;
}

}  // namespace mixlane::bench
