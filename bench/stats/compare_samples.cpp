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

}  // namespace

std::string_view name(Verdict verdict) {
  switch (verdict) {
    case Verdict::fast:
      return "FAST";
    case Verdict::same:
      return "SAME";
    case Verdict::slow:
      return "SLOW";
    case Verdict::ambiguous:
      return "AMBG";
    case Verdict::not_comparable:
      return "????";
  }
  return "????";
}

Comparison compare_samples(std::span<const double> a, std::span<const double> b, double threshold) {
  Comparison result;
  if (quantile(a, 0.5) <= 0 || quantile(b, 0.5) <= 0) {
    result.verdict = Verdict::not_comparable;
    return result;
  }
  const LogMedian la = log_median(a), lb = log_median(b);
  const double difference = lb.value - la.value;
  result.ratio = std::exp(difference);
  result.interval.low = std::exp(difference - std::hypot(lb.below, la.above));
  result.interval.high = std::exp(difference + std::hypot(lb.above, la.below));
  const bool enough = a.size() >= kMinSamples && b.size() >= kMinSamples;
  result.verdict = enough ? verdict_of(result.interval, threshold) : Verdict::ambiguous;
  return result;
}

}  // namespace mixlane::bench
