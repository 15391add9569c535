#include "tune/align_sweep.hpp"

#include <algorithm>
#include <memory>

#include "core/error.hpp"

namespace mixlane::bench {
namespace {

// Behind the best at a bucket's largest size by more than this, nobody is ahead anywhere in the bucket.
constexpr double kContested = 1.3;
constexpr int kMaxBlock = 1024;  // of a call
constexpr int kSideRounds = 6;   // of the eight races beside the first one
constexpr double kTie = 0.002;   // regrets that differ by less are the same: the simpler variant is chosen

// Ids of a shape that are skewed, as many as were needed so far.
class SkewedIds {
 public:
  SkewedIds(Device device, const AlignShapeKey& shape, AlignSkew skew) : device_(device), shape_(shape), skew_(skew) {}
  // Good for `tokens` until it is asked for more.
  const AlignIdsOnGpu& of(int64_t tokens) {
    if (tokens > tokens_) {
      tokens_ = std::max(std::min(2 * tokens, kAlignBuckets.most_pairs / shape_.topk), kAtLeast);
      ids_ = std::make_unique<AlignIdsOnGpu>(device_, shape_, skew_, tokens_);
    }
    return *ids_;
  }

 private:
  static constexpr int64_t kAtLeast = 4096;
  Device device_;
  AlignShapeKey shape_;
  AlignSkew skew_;
  int64_t tokens_ = 0;
  std::unique_ptr<AlignIdsOnGpu> ids_;
};

// The keys of one shape.
class ShapeTuning {
 public:
  ShapeTuning(Context& context, Context& cpu, DeviceTimer& timer, const AlignSweep& sweep, const AlignShapeKey& shape)
      : context_(context),
        cpu_(cpu),
        timer_(timer),
        sweep_(sweep),
        shape_(shape),
        sizes_(bucket_ends_of(kAlignBuckets, sweep.tokens, shape.topk)),
        uniform_(context.device(), shape, AlignSkew::uniform, sizes_.back()),
        zipf_(context.device(), shape, AlignSkew::zipf),
        one_expert_(context.device(), shape, AlignSkew::one_expert) {}

  // Adds the entries to `table`; a line about them.
  std::string run(TunedTable& table) {
    std::vector<std::pair<int64_t, std::string>> by_tokens;
    for (const int64_t tokens : sizes_) {
      const AlignCase align_case(context_, uniform_, tokens, sweep_.block);
      if (align_case.candidates().size() < 2) continue;
      align_case.check(cpu_, timer_.stream());
      AlignRace all(timer_, align_case);
      RaceResult result = all.run(sweep_.race);
      result.winner = choose(all.candidates(), result, tokens);
      table.entries.push_back(make_entry(align_tune_space(), align_key(align_case.args("auto")), all.ids(), result));
      by_tokens.emplace_back(tokens, table.entries.back().choice);
    }
    return fmt::format("{}: {}", shape_text(shape_), choices_text(by_tokens));
  }

 private:
  using Candidates = std::vector<const Variant<AlignArgs>*>;

  // `evenly` is the race of all candidates at the bucket's largest size with ids that spread evenly. Where the choice is
  // close it has to be good for the bucket's smallest size, for skewed ids and for other blocks as well.
  int choose(const Candidates& candidates, const RaceResult& evenly, int64_t largest) {
    const std::vector<double>& us = evenly.median_us;
    const double best = *std::min_element(us.begin(), us.end());
    std::vector<RaceResult> races(1);
    Candidates near;
    for (size_t i = 0; i < us.size(); ++i)
      if (us[i] <= kContested * best) {
        near.push_back(candidates[i]);
        races[0].median_us.push_back(us[i]);
      }
    if (near.size() < 2) return evenly.winner;
    const int64_t smallest = first_in_bucket(kAlignBuckets, largest, shape_.topk);
    // The larger size first: skewed ids are made once.
    add_races(largest, near, races);
    if (smallest < largest) add_races(smallest, near, races);
    const auto* choice = near[static_cast<size_t>(least_regret(races, kTie))];
    return static_cast<int>(std::find(candidates.begin(), candidates.end(), choice) - candidates.begin());
  }

  void add_races(int64_t tokens, const Candidates& near, std::vector<RaceResult>& races) {
    const int small = std::max(sweep_.block / 4, 1), large = std::min(sweep_.block * 2, kMaxBlock);
    races.push_back(race(uniform_, tokens, small, near));
    races.push_back(race(uniform_, tokens, large, near));
    races.push_back(race(zipf_.of(tokens), tokens, sweep_.block, near));
    races.push_back(race(one_expert_.of(tokens), tokens, sweep_.block, near));
  }

  RaceResult race(const AlignIdsOnGpu& ids, int64_t tokens, int block, const Candidates& near) {
    const AlignCase align_case(context_, ids, tokens, block);
    RaceOptions options = sweep_.race;
    options.rounds = std::min(options.rounds, kSideRounds);
    return AlignRace(timer_, align_case, near).run(options);
  }

  Context& context_;
  Context& cpu_;
  DeviceTimer& timer_;
  const AlignSweep& sweep_;
  AlignShapeKey shape_;
  std::vector<int64_t> sizes_;
  AlignIdsOnGpu uniform_;
  SkewedIds zipf_, one_expert_;
};

}  // namespace

TunedTable tune_align(Context& context, const AlignSweep& sweep, const TuningRun& run, Stream caller,
                      const TuneProgress& progress) {
  refuse_capture(caller);
  TunedTable table = empty_table(align_tune_space(), align_tuning(context).machine(), run);
  Context cpu;
  DeviceTimer timer(context.device());
  for (const AlignShapeKey& shape : sweep.shapes) {
    const std::string line = ShapeTuning(context, cpu, timer, sweep, shape).run(table);
    if (progress) progress(line);
  }
  return table;
}

}  // namespace mixlane::bench
