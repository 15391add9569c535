#include "tune/align_regret.hpp"

#include <algorithm>
#include <optional>

namespace mixlane::bench {
namespace {

// The candidate that the model prefers.
std::string_view modelled(const std::vector<const Variant<AlignArgs>*>& candidates, const AlignCase& align_case,
                          int num_multiprocessors) {
  const auto estimate = [&](const auto* candidate) {
    return candidate->estimate_us(align_case.args("auto"), num_multiprocessors);
  };
  const auto best = std::min_element(candidates.begin(), candidates.end(),
                                     [&](const auto* a, const auto* b) { return estimate(a) < estimate(b); });
  return (*best)->info.id;
}

Regret regret_at(Context& context, DeviceTimer& timer, const AlignCase& align_case, const RaceOptions& options) {
  AlignRace race(timer, align_case);
  return measure_regret(
      race.ids(), select_align(context, align_case.args("auto")).info.id,
      modelled(race.candidates(), align_case, align_tuning(context).machine().num_multiprocessors),
      [&](const RaceOptions& these) { return race.run(these); }, options);
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
        points.push_back({regret_at(context, timer, align_case, sweep.race), shape, layout.skew, layout.block, tokens});
      }
    }
    if (progress) progress(fmt::format("{}: measured", shape_text(shape)));
  }
  return points;
}

std::string regret_text(const std::vector<RegretPoint>& points) {
  std::vector<RegretCell> cells;
  for (const RegretPoint& point : points)
    cells.push_back(
        {fmt::format("{} | {} | {}", shape_text(point.shape), name(point.skew), point.block),
         fmt::format("{} {} block={} tokens={}", shape_text(point.shape), name(point.skew), point.block, point.tokens),
         point});
  return regret_table("shape | ids spread | block", cells);
}

}  // namespace mixlane::bench
