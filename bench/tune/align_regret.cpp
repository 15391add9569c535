#include "tune/align_regret.hpp"

#include <algorithm>
#include <map>
#include <optional>

#include "tune/fit.hpp"

namespace mixlane::bench {
namespace {

// The candidate that the model prefers.
size_t modelled(const Timed& timed, const AlignCase& align_case, int num_multiprocessors) {
  size_t best = 0;
  double best_us = 0;
  for (size_t i = 0; i < timed.candidates.size(); ++i) {
    const double us = timed.candidates[i]->estimate_us(align_case.args("auto"), num_multiprocessors);
    if (i == 0 || us < best_us) {
      best = i;
      best_us = us;
    }
  }
  return best;
}

RegretPoint measure_regret(Context& context, DeviceTimer& timer, const AlignCase& align_case, const RaceOptions& options) {
  const Timed timed = time_candidates(timer, align_case, options);
  const size_t by_model = modelled(timed, align_case, align_tuning(context).machine().num_multiprocessors);
  RegretPoint point;
  static_cast<Regret&>(point) =
      make_regret(times_of(timed.ids(), timed.result), select_align(context, align_case.args("auto")).info.id,
                  timed.candidates[by_model]->info.id);
  return point;
}

}  // namespace

std::vector<RegretPoint> align_regret(Context& context, const RegretSweep& sweep, Stream caller,
                                      const TuneProgress& progress) {
  refuse_capture(caller);
  Context cpu;
  DeviceTimer timer(context.device());
  const int64_t most = *std::max_element(sweep.tokens.begin(), sweep.tokens.end());
  std::vector<RegretPoint> points;
  for (const AlignShapeKey& shape : sweep.shapes) {
    std::optional<AlignIdsOnGpu> ids;
    for (size_t i = 0; i < sweep.layouts.size(); ++i) {
      const RegretSweep::Layout& layout = sweep.layouts[i];
      if (i == 0 || layout.skew != sweep.layouts[i - 1].skew) ids.emplace(context.device(), shape, layout.skew, most);
      for (const int64_t tokens : sweep.tokens) {
        const AlignCase align_case(context, *ids, tokens, layout.block);
        align_case.check(cpu, timer.stream());
        RegretPoint point = measure_regret(context, timer, align_case, sweep.race);
        point.shape = shape;
        point.skew = layout.skew;
        point.block = layout.block;
        point.tokens = tokens;
        points.push_back(std::move(point));
      }
    }
    if (progress) progress(fmt::format("{}: measured", shape_text(shape)));
  }
  return points;
}

namespace {

// The model's constants as these points would have them. Only where a variant is near the best does its time decide.
std::string fit_text(const std::vector<RegretPoint>& points) {
  constexpr double kNear = 1.3;
  std::map<std::pair<bool, std::string>, std::vector<SizedTime>> samples;
  for (const RegretPoint& point : points) {
    double best = point.median_us.front().second;
    for (const auto& [id, us] : point.median_us) best = std::min(best, us);
    for (const auto& [id, us] : point.median_us)
      if (us <= kNear * best)
        samples[{point.shape.ids != AlignIds::i32, id}].push_back(
            {static_cast<double>(point.shape.experts), static_cast<double>(point.tokens * point.shape.topk), us});
  }
  std::string text =
      "\n| fitted to these points | ids | near the best at | launch us | group ns | pair ns |\n|---|---|---|---|---|---|\n";
  for (const auto& [key, of_variant] : samples) {
    const FittedLine line = fit_line(of_variant);
    text += fmt::format("| {} | {} | {} | {:.2f} | {:.2f} | {:.5f} |\n", key.second, key.first ? "other" : "dense i32",
                        of_variant.size(), line.launch_us, line.group_ns, line.pair_ns);
  }
  return text;
}

}  // namespace

std::string regret_text(const std::vector<RegretPoint>& points) {
  std::vector<RegretCell> cells;
  for (const RegretPoint& point : points)
    cells.push_back(
        {fmt::format("{} | {} | {}", shape_text(point.shape), name(point.skew), point.block),
         fmt::format("{} {} block={} tokens={}", shape_text(point.shape), name(point.skew), point.block, point.tokens),
         point});
  return regret_table("shape | ids spread | block", cells) + fit_text(points);
}

}  // namespace mixlane::bench
