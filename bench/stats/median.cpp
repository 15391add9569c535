#include <algorithm>
#include <cmath>
#include <numeric>

#include "stats/stats.hpp"

namespace mixlane::bench {
namespace {

std::vector<double> sorted(std::span<const double> samples) {
  std::vector<double> values(samples.begin(), samples.end());
  std::sort(values.begin(), values.end());
  return values;
}

double quantile_of_sorted(std::span<const double> values, double q) {
  if (values.empty()) return 0;
  const double position = std::clamp(q, 0.0, 1.0) * static_cast<double>(values.size() - 1);
  const auto below = static_cast<size_t>(position);
  const size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (position - static_cast<double>(below)) * (values[above] - values[below]);
}

// The largest k for which the k-th smallest and the k-th largest of n independent samples enclose the median with 95 %
// probability: P(Binomial(n, 1/2) < k) <= 2.5 %. At least 1: below 6 samples no pair reaches 95 %.
int interval_rank(int n) {
  double log_probability = -n * std::log(2.0);  // of j samples below the median
  double tail = 0;
  int k = 0;
  for (int j = 0; j < n; ++j) {
    tail += std::exp(log_probability);
    if (tail > 0.025) break;
    k = j + 1;
    log_probability += std::log(static_cast<double>(n - j) / (j + 1));
  }
  return std::max(k, 1);
}

// How many samples of a run are worth one independent sample, for the median: 1 + 2 x the autocorrelations of the series
// "above or below the median", summed until they sink into the noise of the estimate.
double correlation_time(std::span<const double> samples, double median) {
  const auto n = samples.size();
  const auto side = [&](size_t i) { return samples[i] > median ? 1.0 : samples[i] < median ? -1.0 : 0.0; };
  double power = 0;
  for (size_t i = 0; i < n; ++i) power += side(i) * side(i);
  if (power == 0) return 1;
  const double noise = 1.3 / std::sqrt(static_cast<double>(n));
  double time = 1;
  for (size_t lag = 1; lag <= n / 3; ++lag) {
    double sum = 0;
    for (size_t i = lag; i < n; ++i) sum += side(i) * side(i - lag);
    const double correlation = sum / power;
    if (correlation < noise) break;
    time += 2 * correlation;
  }
  return time;
}

Interval interval_of(std::span<const double> samples, std::span<const double> values) {
  if (values.empty()) return {};
  const int n = static_cast<int>(values.size());
  const double centre = (n + 1) / 2.0;
  const double reach = (centre - interval_rank(n)) * std::sqrt(correlation_time(samples, quantile_of_sorted(values, 0.5)));
  const int k = std::max(1, static_cast<int>(std::floor(centre - reach)));
  return {values[k - 1], values[n - k]};
}

}  // namespace

double quantile(std::span<const double> samples, double q) { return quantile_of_sorted(sorted(samples), q); }

Interval median_interval(std::span<const double> samples) { return interval_of(samples, sorted(samples)); }

Statistic summarise(std::span<const double> samples, double target_rel_half_width) {
  Statistic s;
  if (samples.empty()) return s;
  const std::vector<double> values = sorted(samples);
  const Interval interval = interval_of(samples, values);
  s.n = static_cast<int>(values.size());
  s.median_us = quantile_of_sorted(values, 0.5);
  s.p10_us = quantile_of_sorted(values, 0.1);
  s.p90_us = quantile_of_sorted(values, 0.9);
  s.min_us = values.front();
  s.max_us = values.back();
  s.rel_half_width = s.median_us > 0 ? (interval.high - interval.low) / 2 / s.median_us : 0;
  s.converged = s.n >= kMinSamples && s.rel_half_width <= target_rel_half_width;
  return s;
}

}  // namespace mixlane::bench
