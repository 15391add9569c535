#include "stats/stats.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "sample_results.hpp"

namespace mixlane::bench {
namespace {

using mixlane::test::Rng;
using test::noisy_samples;

// 1, 2, ... n in an order in which neighbours say nothing about each other.
std::vector<double> shuffled_ranks(int n) {
  std::vector<double> values;
  for (int i = 1; i <= n; ++i) values.push_back(i);
  Rng rng(7);
  std::shuffle(values.begin(), values.end(), rng);
  return values;
}

// A first-order autoregressive series around log(centre): each sample remembers `memory` of the one before.
std::vector<double> correlated_samples(Rng& rng, int n, double centre, double noise, double memory) {
  std::normal_distribution<double> normal(0, noise);
  double state = normal(rng);
  std::vector<double> samples;
  for (int i = 0; i < n; ++i) {
    samples.push_back(centre * std::exp(state));
    state = memory * state + std::sqrt(1 - memory * memory) * normal(rng);
  }
  return samples;
}

TEST(Quantile, InterpolatesBetweenOrderStatistics) {
  const std::vector<double> samples = {40, 10, 30, 20};
  EXPECT_DOUBLE_EQ(quantile(samples, 0), 10);
  EXPECT_DOUBLE_EQ(quantile(samples, 1), 40);
  EXPECT_DOUBLE_EQ(quantile(samples, 0.5), 25);
  EXPECT_DOUBLE_EQ(quantile(samples, 0.1), 13);
  EXPECT_DOUBLE_EQ(quantile(samples, 0.9), 37);
  EXPECT_DOUBLE_EQ(quantile(std::vector<double>{5}, 0.9), 5);
  EXPECT_DOUBLE_EQ(quantile({}, 0.5), 0);
}

// The ranks are those of the tables of the binomial interval of a median at 95 %.
TEST(MedianInterval, UsesTheKnownOrderStatistics) {
  struct Row {
    int n, low;
  };
  for (const Row& row : {Row{5, 1}, Row{6, 1}, Row{8, 1}, Row{9, 2}, Row{10, 2}, Row{15, 4}, Row{20, 6}, Row{25, 8},
                         Row{50, 18}, Row{100, 40}}) {
    const Interval interval = median_interval(shuffled_ranks(row.n));
    EXPECT_EQ(interval.low, row.low) << row.n;
    EXPECT_EQ(interval.high, row.n + 1 - row.low) << row.n;
  }
}

TEST(MedianInterval, HoldsTheMedianNineteenTimesInTwenty) {
  Rng rng(11);
  for (const int n : {10, 30, 100, 400}) {
    int inside = 0, runs = 2000;
    for (int run = 0; run < runs; ++run) {
      const Interval interval = median_interval(noisy_samples(rng, n, 50, 0.3));
      inside += interval.low <= 50 && 50 <= interval.high;
    }
    EXPECT_GT(inside, 0.935 * runs) << n;
    EXPECT_LT(inside, 0.99 * runs) << n;
  }
}

TEST(MedianInterval, WidensWhereNeighboursResembleEachOther) {
  Rng rng(12);
  for (const double memory : {0.5, 0.9}) {
    int inside = 0, runs = 1000;
    for (int run = 0; run < runs; ++run) {
      const Interval interval = median_interval(correlated_samples(rng, 300, 50, 0.3, memory));
      inside += interval.low <= 50 && 50 <= interval.high;
    }
    EXPECT_GT(inside, 0.88 * runs) << memory;  // independent samples' ranks would reach 75 % and 35 %
  }
}

TEST(Summarise, GivesEveryStatistic) {
  const Statistic s = summarise(shuffled_ranks(101), 0.25);
  EXPECT_EQ(s.n, 101);
  EXPECT_DOUBLE_EQ(s.median_us, 51);
  EXPECT_DOUBLE_EQ(s.p10_us, 11);
  EXPECT_DOUBLE_EQ(s.p90_us, 91);
  EXPECT_DOUBLE_EQ(s.min_us, 1);
  EXPECT_DOUBLE_EQ(s.max_us, 101);
  EXPECT_DOUBLE_EQ(s.rel_half_width, 10.0 / 51);  // order statistics 41 and 61
  EXPECT_TRUE(s.converged);
  EXPECT_FALSE(summarise(shuffled_ranks(101), 0.19).converged);
}

TEST(Summarise, FewSamplesNeverConverge) {
  const std::vector<double> equal(kMinSamples, 3.0);
  EXPECT_TRUE(summarise(equal, 0.01).converged);
  EXPECT_FALSE(summarise(std::span(equal).first(kMinSamples - 1), 0.01).converged);
  EXPECT_EQ(summarise({}, 0.01).n, 0);
}

TEST(Compare, RatioAndIntervalOfConstants) {
  const std::vector<double> a(10, 100.0), b(10, 150.0);
  const Comparison result = compare_samples(a, b, 0.02);
  EXPECT_NEAR(result.ratio, 1.5, 1e-12);
  EXPECT_NEAR(result.interval.low, 1.5, 1e-12);
  EXPECT_NEAR(result.interval.high, 1.5, 1e-12);
  EXPECT_EQ(result.verdict, Verdict::slow);
  EXPECT_EQ(compare_samples(b, a, 0.02).verdict, Verdict::fast);
  EXPECT_EQ(compare_samples(a, a, 0.02).verdict, Verdict::same);
  EXPECT_EQ(compare_samples(a, b, 0.6).verdict, Verdict::same);
}

TEST(Compare, JoinsTheIntervalsOnTheLogarithmicScale) {
  const std::vector<double> a = shuffled_ranks(100), b(10, 101.0);  // median 50.5 in 40 .. 61
  const Comparison result = compare_samples(a, b, 0.02);
  EXPECT_NEAR(result.ratio, 2, 1e-12);
  EXPECT_NEAR(result.interval.low, 101.0 / 61, 1e-12);
  EXPECT_NEAR(result.interval.high, 101.0 / 40, 1e-12);
}

TEST(Compare, VerdictsKnowTheNoise) {
  Rng rng(13);
  const auto base = noisy_samples(rng, 200, 100, 0.02);
  EXPECT_EQ(compare_samples(base, noisy_samples(rng, 200, 100.2, 0.02), 0.02).verdict, Verdict::same);
  EXPECT_EQ(compare_samples(base, noisy_samples(rng, 200, 106, 0.02), 0.02).verdict, Verdict::slow);
  EXPECT_EQ(compare_samples(base, noisy_samples(rng, 200, 94, 0.02), 0.02).verdict, Verdict::fast);
  EXPECT_EQ(compare_samples(base, noisy_samples(rng, 200, 102, 0.02), 0.02).verdict, Verdict::ambiguous);
  EXPECT_EQ(compare_samples(noisy_samples(rng, 12, 100, 0.5), noisy_samples(rng, 12, 106, 0.5), 0.02).verdict,
            Verdict::ambiguous);
}

TEST(Compare, TooFewSamplesDecideNothing) {
  const std::vector<double> a(kMinSamples - 1, 100.0), b(20, 200.0);
  EXPECT_EQ(compare_samples(a, b, 0.02).verdict, Verdict::ambiguous);
  EXPECT_EQ(compare_samples({}, b, 0.02).verdict, Verdict::not_comparable);
  EXPECT_EQ(compare_samples(std::vector<double>(10, 0.0), b, 0.02).verdict, Verdict::not_comparable);
}

TEST(Compare, IntervalHoldsTheTrueRatioNineteenTimesInTwenty) {
  Rng rng(14);
  for (const int n : {8, 40, 200}) {
    int inside = 0, runs = 2000;
    for (int run = 0; run < runs; ++run) {
      const auto result = compare_samples(noisy_samples(rng, n, 80, 0.2), noisy_samples(rng, 2 * n, 100, 0.4), 0.02);
      inside += result.interval.low <= 1.25 && 1.25 <= result.interval.high;
    }
    EXPECT_GT(inside, 0.935 * runs) << n;
    EXPECT_LT(inside, 0.995 * runs) << n;
  }
}

TEST(Compare, TwoRunsOfTheSameCodeAreRarelyCalledDifferent) {
  Rng rng(15);
  int wrong = 0, runs = 1000;
  for (int run = 0; run < runs; ++run) {
    const auto a = correlated_samples(rng, 200, 100, 0.1, 0.8), b = correlated_samples(rng, 200, 100, 0.1, 0.8);
    const Verdict verdict = compare_samples(a, b, 0).verdict;
    wrong += verdict == Verdict::fast || verdict == Verdict::slow;
  }
  EXPECT_LT(wrong, 0.08 * runs);
}

}  // namespace
}  // namespace mixlane::bench
