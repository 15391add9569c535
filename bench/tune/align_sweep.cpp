#include "tune/align_sweep.hpp"

#include <algorithm>
#include <optional>

#include "core/error.hpp"

namespace mixlane::bench {
namespace {

void refuse_capture(Stream caller) {
  if (gpu::is_capturing(caller))
    fail(ErrorCode::unsupported,
         "tuning while a graph is captured: timing waits for the device; tune before the capture, or load a table");
}

// The candidates of a case, timed against each other.
struct Timed {
  std::vector<const Variant<AlignArgs>*> candidates;
  RaceResult result;

  std::vector<std::pair<std::string, double>> times() const {
    std::vector<std::pair<std::string, double>> all;
    for (size_t i = 0; i < candidates.size(); ++i) all.emplace_back(candidates[i]->info.id, result.median_us[i]);
    return all;
  }
};

Timed time_candidates(DeviceTimer& timer, const AlignCase& align_case, const RaceOptions& options) {
  Timed timed;
  timed.candidates = align_case.candidates();
  std::vector<PreparedWork> works;
  for (const auto* candidate : timed.candidates) works.push_back(timer.prepare(align_case.work(*candidate)));
  const auto sample = [&](int candidate) {
    PreparedWork& work = works[static_cast<size_t>(candidate)];
    work.take(1);
    return work.samples_us().back();
  };
  timed.result = race(static_cast<int>(works.size()), sample, options);
  return timed;
}

std::string shape_text(const AlignShapeKey& shape) {
  return fmt::format("experts={} topk={} ids={}", shape.experts, shape.topk,
                     align_tune_space().fields[2].words[static_cast<size_t>(shape.ids)]);
}

TuneValue value_of(const TuneField& field, int64_t packed) {
  if (field.words.empty()) return packed;
  return std::string(field.words[static_cast<size_t>(packed)]);
}

}  // namespace

std::vector<int64_t> all_token_buckets() {
  std::vector<int64_t> buckets;
  for (int64_t tokens = 1; buckets.empty() || token_bucket(tokens) != buckets.back(); tokens = buckets.back() + 1)
    buckets.push_back(token_bucket(tokens));
  return buckets;
}

std::string choices_text(const std::vector<std::pair<int64_t, std::string>>& by_tokens) {
  std::string text;
  for (size_t i = 0; i < by_tokens.size(); ++i) {
    const bool last = i + 1 == by_tokens.size();
    if (!last && by_tokens[i + 1].second == by_tokens[i].second) continue;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", by_tokens[i].second);
    if (!last) text += fmt::format(" to {}", by_tokens[i].first);
  }
  return text;
}

TunedTable tune_align(Context& context, const AlignSweep& sweep, const TuningRun& run, Stream caller,
                      const TuneProgress& progress) {
  refuse_capture(caller);
  const TuneSpace& space = align_tune_space();
  TunedTable table{.file = "the new choices",
                   .stage = std::string(space.stage),
                   .machine = align_tuning(context).machine(),
                   .fields = {},
                   .runs = {run},
                   .entries = {}};
  for (const TuneField& field : space.fields) table.fields.emplace_back(field.name);
  Context cpu;
  DeviceTimer timer(context.device());
  const int64_t most = *std::max_element(sweep.tokens.begin(), sweep.tokens.end());
  for (const AlignShapeKey& shape : sweep.shapes) {
    const AlignIdsOnGpu ids(context.device(), shape, AlignSkew::uniform, most);
    std::vector<std::pair<int64_t, std::string>> by_tokens;
    for (const int64_t tokens : sweep.tokens) {
      const AlignCase align_case(context, ids, tokens, sweep.block);
      if (align_case.candidates().size() < 2) continue;
      align_case.check(cpu, timer.stream());
      const Timed timed = time_candidates(timer, align_case, sweep.race);
      TunedEntry entry;
      const PackedKey key = align_key(align_case.args("auto"));
      for (size_t i = 0; i < space.fields.size(); ++i) entry.key.push_back(value_of(space.fields[i], key[i]));
      entry.choice = timed.candidates[static_cast<size_t>(timed.result.winner)]->info.id;
      entry.measured_us = timed.times();
      by_tokens.emplace_back(tokens, entry.choice);
      table.entries.push_back(std::move(entry));
    }
    if (progress) progress(fmt::format("{}: {}", shape_text(shape), choices_text(by_tokens)));
  }
  return table;
}

// ---------------------------------------------------------------------------------------------------------------------

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
  const std::vector<double>& us = timed.result.median_us;
  const double best = *std::min_element(us.begin(), us.end());
  const Variant<AlignArgs>& chosen = select_align(context, align_case.args("auto"));
  const auto place = std::find(timed.candidates.begin(), timed.candidates.end(), &chosen) - timed.candidates.begin();
  const size_t by_model = modelled(timed, align_case, align_tuning(context).machine().num_multiprocessors);
  RegretPoint point;
  point.median_us = timed.times();
  point.chosen = chosen.info.id;
  point.modelled = timed.candidates[by_model]->info.id;
  point.regret = us[static_cast<size_t>(place)] / best - 1;
  point.model_regret = us[by_model] / best - 1;
  return point;
}

struct RegretSum {
  double most = 0, sum = 0, model_most = 0, model_sum = 0;
  int count = 0;

  void add(const RegretPoint& point) {
    most = std::max(most, point.regret);
    sum += point.regret;
    model_most = std::max(model_most, point.model_regret);
    model_sum += point.model_regret;
    ++count;
  }
  std::string cells() const {
    const double n = std::max(count, 1);
    return fmt::format("{} | {:.1f} % | {:.2f} % | {:.1f} % | {:.2f} %", count, 100 * most, 100 * sum / n, 100 * model_most,
                       100 * model_sum / n);
  }
};

std::string point_text(const RegretPoint& point) {
  std::string times;
  for (const auto& [id, us] : point.median_us) times += fmt::format("{}{} {:.2f}", times.empty() ? "" : ", ", id, us);
  return fmt::format("| {} {} block={} tokens={} | {} | {:.1f} % | {} |\n", shape_text(point.shape), name(point.skew),
                     point.block, point.tokens, point.chosen, 100 * point.regret, times);
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

std::string regret_text(const std::vector<RegretPoint>& points) {
  constexpr size_t kWorst = 12;
  std::string text =
      "| shape | ids spread | block | points | auto, worst | auto, mean | model alone, worst | model alone, mean |\n"
      "|---|---|---|---|---|---|---|---|\n";
  RegretSum all;
  for (size_t i = 0; i < points.size();) {
    const RegretPoint& first = points[i];
    RegretSum row;
    for (; i < points.size() && points[i].shape == first.shape && points[i].skew == first.skew &&
           points[i].block == first.block;
         ++i) {
      row.add(points[i]);
      all.add(points[i]);
    }
    text += fmt::format("| {} | {} | {} | {} |\n", shape_text(first.shape), name(first.skew), first.block, row.cells());
  }
  text += fmt::format(
      "| all | | | {} |\n\n| worst points of auto | chosen | regret | median us of each variant |\n|---|---|---|---|\n",
      all.cells());
  std::vector<RegretPoint> worst = points;
  std::stable_sort(worst.begin(), worst.end(), [](const auto& a, const auto& b) { return a.regret > b.regret; });
  worst.resize(std::min(worst.size(), kWorst));
  for (const RegretPoint& point : worst) text += point_text(point);
  return text;
}

}  // namespace mixlane::bench
