// Candidates against each other: measured in turn, so that all see the same moments of the machine, and compared by ratios.
#pragma once

#include <functional>
#include <span>
#include <vector>

namespace mixlane::bench {

struct RaceOptions {
  int rounds = 10;        // a sample of every candidate each
  int trial_rounds = 3;   // after which those behind drop out
  double hopeless = 1.5;  // this many times the best median
  double far_behind = 3;  // this many times, after the first round
  double margin = 0.01;   // a later candidate wins only if it is faster by more than this, and by more than the noise
};

struct RaceResult {
  int winner = 0;
  std::vector<double> median_us;                // of each candidate
  std::vector<std::vector<double>> samples_us;  // one for each round that it was in
};

// Candidates in order of simplicity: what is not faster beyond noise and margin does not displace an earlier one.
// `sample_us` measures a candidate once.
RaceResult race(int num_candidates, const std::function<double(int candidate)>& sample_us, const RaceOptions& options = {});

// The same candidates' races at several sizes of one key: who never loses much. The one whose largest regret, its median
// over the race's best minus 1, is the smallest; a later one only if that is smaller by more than the margin.
int least_regret(std::span<const RaceResult> races, double margin);

}  // namespace mixlane::bench
