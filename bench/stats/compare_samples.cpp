#include <algorithm>
#include <cmath>

#include "stats/stats.hpp"

namespace mixlane::bench {
namespace {

Verdict verdict_of(const Interval& ratio, double threshold) {
  const double faster = 1 / (1 + threshold), slower = 1 + threshold;
  if (ratio.high < faster) return Verdict::fast;
  if (ratio.low > slower) return Verdict::slow;
  if (ratio.low >= faster && ratio.high <= slower) return Verdict::same;
  return Verdict::ambiguous;
}

struct LogMedian {
  double value, below, above;  // and the distances to the ends of its interval
};

LogMedian log_median(std::span<const double> samples) {
  const Interval interval = median_interval(samples);
  const double value = std::log(quantile(samples, 0.5));
  return {value, value - std::log(interval.low), std::log(interval.high) - value};
}

// The 97.5 % quantile of Student's t with `freedom` degrees of freedom.
double student_t(size_t freedom) {
  constexpr double kTable[] = {12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23};
  return freedom <= std::size(kTable) ? kTable[freedom - 1] : 2.23;
}

// The mean of the runs' log medians, with the noise inside the runs and the spread between them.
LogMedian log_median(const Runs& runs) {
  const auto n = static_cast<double>(runs.size());
  LogMedian mean{0, 0, 0};
  std::vector<double> values;
  for (const auto& samples : runs) {
    const LogMedian one = log_median(samples);
    values.push_back(one.value);
    mean.value += one.value / n;
    mean.below = std::hypot(mean.below, one.below / n);
    mean.above = std::hypot(mean.above, one.above / n);
  }
  if (runs.size() == 1) return mean;
  double squares = 0;
  for (const double value : values) squares += (value - mean.value) * (value - mean.value);
  const double between = student_t(runs.size() - 1) * std::sqrt(squares / (n - 1) / n);
  return {mean.value, std::hypot(mean.below, between), std::hypot(mean.above, between)};
}

bool has_positive_medians(const Runs& runs) {
  return !runs.empty() &&
         std::all_of(runs.begin(), runs.end(), [](const auto& samples) { return quantile(samples, 0.5) > 0; });
}

bool has_enough_samples(const Runs& runs) {
  return std::all_of(runs.begin(), runs.end(), [](const auto& samples) { return samples.size() >= kMinSamples; });
}

}  // namespace

std::string_view name(Verdict verdict) {
  switch (verdict) {
    case Verdict::fast: return "FAST";
    case Verdict::same: return "SAME";
    case Verdict::slow: return "SLOW";
    case Verdict::ambiguous: return "AMBG";
    case Verdict::not_comparable: return "????";
  }
  return "????";
}

Comparison compare_runs(const Runs& a, const Runs& b, double machine_drift, double threshold) {
  Comparison result;
  if (!has_positive_medians(a) || !has_positive_medians(b)) {
    result.verdict = Verdict::not_comparable;
    return result;
  }
  const LogMedian la = log_median(a), lb = log_median(b);
  const double difference = lb.value - la.value;
  const double drift = a.size() == 1 || b.size() == 1 ? std::log1p(machine_drift) : 0;
  result.ratio = std::exp(difference);
  result.interval.low = std::exp(difference - std::hypot(lb.below, la.above) - drift);
  result.interval.high = std::exp(difference + std::hypot(lb.above, la.below) + drift);
  if (has_enough_samples(a) && has_enough_samples(b)) result.verdict = verdict_of(result.interval, threshold);
  return result;
}

Comparison compare_samples(std::span<const double> a, std::span<const double> b, double threshold) {
  return compare_runs({a}, {b}, 0, threshold);
}

}  // namespace mixlane::bench
