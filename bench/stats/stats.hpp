// The statistics of the benchmark: what is printed, when to stop, and whether two runs differ.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "results/record.hpp"

namespace mixlane::bench {

// Below this many samples no interval of the median reaches 95 %: nothing converges and every comparison is ambiguous.
inline constexpr int kMinSamples = 6;

// Linear-interpolated quantile of samples in any order; q in [0, 1]; 0 without samples.
double quantile(std::span<const double> samples, double q);

struct Interval {
  double low = 0, high = 0;
};

// Distribution-free 95 % interval of the median: two order statistics, by the binomial distribution. `samples` in the order
// they were taken: neighbours in a run resemble each other (clock, other processes), which makes n samples worth fewer, and
// the interval is widened by the square root of that number.
Interval median_interval(std::span<const double> samples);

// converged: the interval's half width, relative to the median, is at most the target.
Statistic summarise(std::span<const double> samples, double target_rel_half_width);

enum class Verdict { fast, same, slow, ambiguous, not_comparable };
std::string_view name(Verdict verdict);  // FAST SAME SLOW AMBG ????

struct Comparison {
  double ratio = 1;   // median B / median A
  Interval interval;  // 95 % of the ratio
  Verdict verdict = Verdict::ambiguous;
};

// The interval joins those of the two medians on the logarithmic scale (Zou and Donner's method of variance estimates
// recovery): asymmetric noise keeps its shape, nothing is drawn at random. With t = threshold (relative, 0.02) and the
// border 1/(1+t) .. 1+t: FAST or SLOW if the whole interval lies beyond it on one side, SAME if all of it is within, AMBG if
// it straddles. Not comparable without positive medians.
Comparison compare_samples(std::span<const double> a, std::span<const double> b, double threshold);

}  // namespace mixlane::bench
