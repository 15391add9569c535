// The statistics of the benchmark: what is printed, when to stop, and whether two runs differ.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "results/record.hpp"

namespace mixlane::bench {

// Linear-interpolated quantile of unsorted samples; q in [0, 1].
double quantile(std::span<const double> samples, double q);

struct Interval {
  double low = 0, high = 0;
};

// Distribution-free 95 % interval of the median (order statistics).
Interval median_interval(std::span<const double> samples);

Statistic summarise(std::span<const double> samples, double target_rel_half_width);

enum class Verdict { fast, same, slow, ambiguous, not_comparable };
std::string_view name(Verdict verdict);  // FAST SAME SLOW AMBG ????

struct Comparison {
  double ratio = 1;   // median B / median A
  Interval interval;  // 95 % of the ratio
  Verdict verdict = Verdict::ambiguous;
};

// FAST or SLOW: the whole interval lies beyond `threshold` (relative, 0.02) on one side; SAME: all of it within;
// AMBG: it straddles the border.
Comparison compare_samples(std::span<const double> a, std::span<const double> b, double threshold);

}  // namespace mixlane::bench
