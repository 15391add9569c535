// How much of one micro-batch's exchange another one's computation hides.
#pragma once

#include "exchange/timer.hpp"

namespace mixlane::bench {

// us of graph replays, slowest rank, one sample per replay.
struct OverlapTimes {
  std::vector<double> compute_us;   // matrix products on all multiprocessors
  std::vector<double> exchange_us;  // a dispatch and a combine
  std::vector<double> both_us;      // the same products on the multiprocessors that the exchange leaves, beside it
  // Of the exchange's time: what the two save together.
  double hidden_share() const;
};

// The products take about 1.5 times as long as the exchange. `num_multiprocessors`: what the way was limited to, 0 = all:
// then kernels of both take turns on all of them. Throws unsupported where there are no such products.
OverlapTimes measure_overlap(const ExchangeStand& stand, ExchangeWay& way, int num_multiprocessors, int num_samples);

}  // namespace mixlane::bench
