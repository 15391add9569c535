// The device timer on work whose size and calls are known: fills of device memory.
#include "measure/device_timer.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>

#include "stats/stats.hpp"
#include "support/errors.hpp"
#include "support/gpu.hpp"

namespace mixlane::bench {
namespace {

using mixlane::test::gpu_device;

class DeviceTimerTest : public mixlane::test::GpuTest {
 protected:
  // Sets of `bytes`, filled by a call; counts the calls of each set.
  DeviceWork filling(int64_t bytes, int num_sets) {
    for (int i = 0; i < num_sets; ++i) buffers_.emplace_back(gpu_device(), bytes);
    calls_.assign(static_cast<size_t>(num_sets), 0);
    const size_t first = buffers_.size() - static_cast<size_t>(num_sets);
    return {[this, first, bytes](Stream stream, int set) {
              ++calls_.at(static_cast<size_t>(set));
              gpu::fill(buffers_[first + static_cast<size_t>(set)].data(), 1, bytes, stream);
            },
            num_sets};
  }

  std::vector<gpu::Buffer> buffers_;
  std::vector<int> calls_;
};

constexpr TimerOptions kAll[] = {{LaunchMode::eager, CacheState::hot},
                                 {LaunchMode::eager, CacheState::cold},
                                 {LaunchMode::graph, CacheState::hot},
                                 {LaunchMode::graph, CacheState::cold}};

TEST_F(DeviceTimerTest, LongWorkAgreesWithTheHostsClock) {
  constexpr int64_t kBytes = int64_t{2} << 30;
  DeviceTimer timer(gpu_device());
  for (const TimerOptions& options : kAll) {
    SCOPED_TRACE(std::string(name(options.mode)) + " " + std::string(name(options.cache)));
    PreparedWork work = timer.prepare(filling(kBytes, 1), options);
    work.take(9);
    ASSERT_EQ(work.samples_us().size(), 9u);
    EXPECT_EQ(work.calls_per_sample(), 1);
    const double median = quantile(work.samples_us(), 0.5);
    // The same fill by the host's clock, its best of a few: longer by a launch and a wait at most.
    double host_us = 1e9;
    for (int i = 0; i < 5; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      gpu::fill(buffers_.back().data(), 1, kBytes, timer.stream());
      gpu::synchronize(timer.stream());
      host_us =
          std::min(host_us, std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count());
    }
    EXPECT_LT(median, host_us * 1.1);
    EXPECT_GT(median, host_us * 0.5);
    buffers_.clear();
  }
}

TEST_F(DeviceTimerTest, ShortWorkIsRepeatedUntilASampleIsLong) {
  DeviceTimer timer(gpu_device());
  for (const TimerOptions& options : kAll) {
    SCOPED_TRACE(std::string(name(options.mode)) + " " + std::string(name(options.cache)));
    PreparedWork work = timer.prepare(filling(4096, DeviceTimer::kMaxCalls), options);
    work.take(20);
    const double sample_us = quantile(work.samples_us(), 0.5) * work.calls_per_sample();
    EXPECT_TRUE(sample_us >= 0.8 * kMinSampleUs || work.calls_per_sample() == DeviceTimer::kMaxCalls)
        << sample_us << " us of " << work.calls_per_sample() << " calls";
    EXPECT_GT(quantile(work.samples_us(), 0.5), 0.1);
    EXPECT_LT(quantile(work.samples_us(), 0.5), 50.0);
    const int sets_used = static_cast<int>(std::count_if(calls_.begin(), calls_.end(), [](int n) { return n > 0; }));
    EXPECT_EQ(sets_used, options.cache == CacheState::cold ? work.calls_per_sample() : 1);
  }
}

TEST_F(DeviceTimerTest, SetsBoundTheCallsOfAColdSample) {
  DeviceTimer timer(gpu_device());
  EXPECT_EQ(timer.prepare(filling(64, 3), {LaunchMode::graph, CacheState::cold}).calls_per_sample(), 3);
  EXPECT_EQ(num_cold_sets(1), DeviceTimer::kMaxCalls);
  EXPECT_EQ(num_cold_sets(int64_t{100} << 20), 16);
  EXPECT_EQ(num_cold_sets(int64_t{1} << 40), 1);
}

TEST_F(DeviceTimerTest, WorksTakeTurns) {
  DeviceTimer timer(gpu_device());
  DeviceWork small = filling(1 << 20, 1);
  DeviceWork large = filling(64 << 20, 1);
  PreparedWork a = timer.prepare(small), b = timer.prepare(large);
  PreparedWork* works[] = {&a, &b};
  SamplePlan plan;
  plan.min_time_s = 0;
  plan.max_time_s = 0.3;
  plan.min_samples = 10;
  plan.max_samples = 50;
  int told = 0;
  sample_in_turn(works, plan, [&told](int samples, double) { told = samples; });
  for (const PreparedWork* work : works) {
    EXPECT_GE(work->samples_us().size(), 10u);
    EXPECT_LE(work->samples_us().size(), 50u);
  }
  EXPECT_EQ(told, static_cast<int>(std::min(a.samples_us().size(), b.samples_us().size())));
  EXPECT_LT(quantile(a.samples_us(), 0.5), quantile(b.samples_us(), 0.5));
}

TEST_F(DeviceTimerTest, FailuresPassThrough) {
  DeviceTimer timer(gpu_device());
  const auto failing = [](Stream, int) { throw Error(ErrorCode::unsupported, "no such shape"); };
  mixlane::test::expect_error(ErrorCode::unsupported, {"no such shape"}, [&] { timer.prepare({failing, 1}); });
  // In a capture too, after which the timer still works.
  int calls = 0;
  const auto second_fails = [&calls](Stream, int) {
    if (++calls > 1) throw Error(ErrorCode::unsupported, "not in a graph");
  };
  mixlane::test::expect_error(ErrorCode::unsupported, {"not in a graph"}, [&] { timer.prepare({second_fails, 1}); });
  PreparedWork work = timer.prepare(filling(4096, 1));
  work.take(3);
  EXPECT_EQ(work.samples_us().size(), 3u);
}

}  // namespace
}  // namespace mixlane::bench
