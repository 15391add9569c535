// What each stage has to move and compute at least, and how long that takes at the machine's peaks.
#pragma once

#include <array>
#include <span>

#include "measure/sampler.hpp"
#include "ops/cost.hpp"
#include "results/record.hpp"

namespace mixlane {
struct ExchangeCost;
}

namespace mixlane::bench {

// One rank's.
struct StageWork {
  int64_t bytes = 0;  // read + written, each byte once
  int64_t flops = 0;
  int64_t fp8_flops = 0;      // of these, products of e4m3
  int64_t logical_bytes = 0;  // received, a rank's own rows included
  int64_t remote_bytes = 0;   // received from other ranks
  StageWork& operator+=(const StageWork& other);
};
StageWork work_of(const Cost& cost);
StageWork work_of(const ExchangeCost& cost);
struct LayerWork {
  std::array<StageWork, kNumStages> stages;
  StageWork exchange;  // dispatch and combine alone, of rows that come back as they went
};

// Of a layer that has just run its forward() with `num_tokens` tokens.
struct WorkRequest {
  const MoeLayerConfig& config;
  const MoeLayerWeights& weights;
  const DispatcherConfig& dispatch;  // as the dispatcher completed it
  const ForwardView& forward;
  int rank = 0;
  int num_ranks = 1;
};
LayerWork layer_work(const WorkRequest& request);

struct SpeedOfLight {
  double us = 0;
  std::string bound = "none";
};

// CPU ranks share memory, caches and cores: the limit is what all ranks do together, at the peaks of the machine. A GPU is
// given on its own, with its peaks.
SpeedOfLight speed_of_light(std::span<const StageWork> ranks, const Peaks& peaks);

// The rank with the most bytes, and then flops.
StageWork worst_rank(std::span<const StageWork> ranks);

// Writes what was measured into a row: the samples and their statistic, the work of the worst rank, and how far
// the median is from the limit of all ranks. Samples are rounded to nanoseconds: clocks resolve less.
void set_figures(StageRecord& row, std::span<const double> samples_us, double target_rel_half_width,
                 std::span<const StageWork> ranks, const Peaks& peaks);

}  // namespace mixlane::bench
