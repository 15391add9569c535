#include "tune/race.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "stats/stats.hpp"

namespace mixlane::bench {
namespace {

using Samples = std::vector<std::vector<double>>;  // of each candidate, one per round it was in

double median(const std::vector<double>& samples) { return quantile(samples, 0.5); }

double best_median(const Samples& samples) {
  double best = median(samples[0]);
  for (const auto& each : samples) best = std::min(best, median(each));
  return best;
}

// Whether `challenger` is faster than `holder` by more than the margin in the rounds that both were in: by the median of
// the ratios, and by all that their noise leaves open.
bool beats(const std::vector<double>& challenger, const std::vector<double>& holder, const RaceOptions& options) {
  std::vector<double> ratios;
  for (size_t round = 0; round < std::min(challenger.size(), holder.size()); ++round)
    ratios.push_back(challenger[round] / holder[round]);
  const double bound = 1.0 / (1.0 + options.margin);
  if (median(ratios) >= bound) return false;
  // Too few rounds for an interval mean that one of them dropped out far behind.
  return static_cast<int>(ratios.size()) < kMinSamples || median_interval(ratios).high < 1.0;
}

}  // namespace

RaceResult race(int num_candidates, const std::function<double(int)>& sample_us, const RaceOptions& options) {
  if (num_candidates < 1) fail(ErrorCode::internal, "a race needs candidates");
  Samples samples(static_cast<size_t>(num_candidates));
  std::vector<bool> in_race(samples.size(), true);
  for (int round = 0; round < options.rounds; ++round) {
    // Every other round backwards: nobody always comes after the same one.
    for (int i = 0; i < num_candidates; ++i) {
      const int candidate = round % 2 == 0 ? i : num_candidates - 1 - i;
      if (in_race[candidate]) samples[candidate].push_back(sample_us(candidate));
    }
    const int done = round + 1;
    if (done != 1 && done != options.trial_rounds) continue;
    const double limit = best_median(samples) * (done == options.trial_rounds ? options.hopeless : options.far_behind);
    for (int i = 0; i < num_candidates; ++i) in_race[i] = median(samples[i]) <= limit;
  }
  RaceResult result;
  for (int i = 0; i < num_candidates; ++i) {
    result.median_us.push_back(median(samples[i]));
    if (i > 0 && beats(samples[i], samples[result.winner], options)) result.winner = i;
  }
  result.samples_us = std::move(samples);
  return result;
}

int least_regret(std::span<const RaceResult> races, double margin) {
  if (races.empty()) fail(ErrorCode::internal, "a choice needs races");
  std::vector<double> worst(races[0].median_us.size(), 0.0);
  for (const RaceResult& result : races) {
    const double best = *std::min_element(result.median_us.begin(), result.median_us.end());
    for (size_t i = 0; i < worst.size(); ++i) worst[i] = std::max(worst[i], result.median_us[i] / best - 1);
  }
  size_t choice = 0;
  for (size_t i = 1; i < worst.size(); ++i)
    if (worst[i] + margin < worst[choice]) choice = i;
  return static_cast<int>(choice);
}

}  // namespace mixlane::bench
