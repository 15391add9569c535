// The constants of a model of time by size, from measured times.
#pragma once

#include <span>

namespace mixlane::bench {

struct SizedTime {
  double groups = 0;
  double pairs = 0;
  double us = 0;
};

// us = launch_us + 1e-3 * (group_ns * groups + pair_ns * pairs)
struct FittedLine {
  double launch_us = 0;
  double group_ns = 0;
  double pair_ns = 0;
};

// Least squares of the relative error. What the samples do not tell (all of one size, say) is 0.
FittedLine fit_line(std::span<const SizedTime> samples);

}  // namespace mixlane::bench
