#include "tune/align_sweep.hpp"

#include <algorithm>

#include "core/error.hpp"

namespace mixlane::bench {
namespace {

// Behind the best at a bucket's largest size by more than this, nobody is ahead anywhere in the bucket.
constexpr double kContested = 1.3;

// Those that are near the best.
std::vector<const Variant<AlignArgs>*> contenders(const Timed& timed) {
  const std::vector<double>& us = timed.result.median_us;
  const double best = *std::min_element(us.begin(), us.end());
  std::vector<const Variant<AlignArgs>*> near;
  for (size_t i = 0; i < us.size(); ++i)
    if (us[i] <= kContested * best) near.push_back(timed.candidates[i]);
  return near;
}

// A bucket, timed at its largest size with ids that spread evenly. Where the choice is close it has to be good for the
// bucket's smallest size and for the most skewed ids as well.
class BucketRace {
 public:
  BucketRace(Context& context, DeviceTimer& timer, const AlignIdsOnGpu& ids, const AlignSweep& sweep)
      : context_(context), timer_(timer), ids_(ids), sweep_(sweep) {}

  // `timed` is the race at `largest`.
  int choose(const Timed& timed, int64_t smallest, int64_t largest) const {
    const auto near = contenders(timed);
    if (near.size() < 2) return timed.result.winner;
    const AlignIdsOnGpu skewed(context_.device(), ids_.shape(), AlignSkew::one_expert, largest);
    std::vector<RaceResult> races{part(timed, near), again(ids_, largest, near), again(skewed, largest, near)};
    if (smallest < largest) {
      races.push_back(again(ids_, smallest, near));
      races.push_back(again(skewed, smallest, near));
    }
    const auto* choice = near[static_cast<size_t>(least_regret(races, sweep_.race.margin))];
    return static_cast<int>(std::find(timed.candidates.begin(), timed.candidates.end(), choice) - timed.candidates.begin());
  }

 private:
  RaceResult again(const AlignIdsOnGpu& ids, int64_t tokens, const std::vector<const Variant<AlignArgs>*>& near) const {
    return time_candidates(timer_, AlignCase(context_, ids, tokens, sweep_.block), sweep_.race, near).result;
  }
  static RaceResult part(const Timed& timed, const std::vector<const Variant<AlignArgs>*>& near) {
    RaceResult some;
    for (size_t i = 0; i < timed.candidates.size(); ++i)
      if (std::find(near.begin(), near.end(), timed.candidates[i]) != near.end())
        some.median_us.push_back(timed.result.median_us[i]);
    return some;
  }

  Context& context_;
  DeviceTimer& timer_;
  const AlignIdsOnGpu& ids_;
  const AlignSweep& sweep_;
};

}  // namespace

TunedTable tune_align(Context& context, const AlignSweep& sweep, const TuningRun& run, Stream caller,
                      const TuneProgress& progress) {
  refuse_capture(caller);
  const TuneSpace& space = align_tune_space();
  TunedTable table = empty_table(space, align_tuning(context).machine(), run);
  Context cpu;
  DeviceTimer timer(context.device());
  for (const AlignShapeKey& shape : sweep.shapes) {
    const std::vector<int64_t> sizes = sweep.tokens.empty() ? token_buckets(shape.topk) : sweep.tokens;
    const AlignIdsOnGpu ids(context.device(), shape, AlignSkew::uniform, *std::max_element(sizes.begin(), sizes.end()));
    const BucketRace bucket(context, timer, ids, sweep);
    std::vector<std::pair<int64_t, std::string>> by_tokens;
    for (const int64_t tokens : sizes) {
      const AlignCase align_case(context, ids, tokens, sweep.block);
      if (align_case.candidates().size() < 2) continue;
      align_case.check(cpu, timer.stream());
      Timed timed = time_candidates(timer, align_case, sweep.race);
      timed.result.winner = bucket.choose(timed, first_in_bucket(tokens, shape.topk), tokens);
      table.entries.push_back(make_entry(space, align_key(align_case.args("auto")), timed.ids(), timed.result));
      by_tokens.emplace_back(tokens, table.entries.back().choice);
    }
    if (progress) progress(fmt::format("{}: {}", shape_text(shape), choices_text(by_tokens)));
  }
  return table;
}

}  // namespace mixlane::bench
