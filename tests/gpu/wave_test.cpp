// The device vocabulary, one operation at a time: logical waves against the same done on the host, packets, barriers.
#include "wave.hpp"

#include <algorithm>
#include <numeric>

#include "support/gpu.hpp"
#include "support/random.hpp"

namespace mixlane {
namespace {

using namespace test;

class WaveGpu : public GpuTest {};

// Of thread `at` by plain loops over its wave.
WaveResult expected(const std::vector<uint32_t>& values, int size, int at) {
  const int begin = at / size * size, lane = at - begin;
  WaveResult result{};
  result.lane = static_cast<uint32_t>(lane);
  result.wave = static_cast<uint32_t>(at / size);
  for (int other = 0; other < size; ++other) {
    const uint32_t value = values[begin + other];
    const uint64_t bit = uint64_t{1} << other;
    if (value % 2 == 1) result.ballot |= bit;
    if (((value ^ values[at]) & ((1u << kMatchBits) - 1)) == 0) result.match |= bit;
    if (other < lane) result.below |= bit;
    result.largest = std::max(result.largest, value);
    result.sum += value;
    if (other > lane) continue;
    result.sum_below += value;
    result.sums_below[0] += value;
    result.sums_below[1] += value * value;
  }
  result.from_mirror = values[begin + size - 1 - lane];
  result.from_below = values[lane >= static_cast<int>(kUpDistance) ? at - static_cast<int>(kUpDistance) : at];
  return result;
}

TEST_F(WaveGpu, OperationsOfEverySize) {
  Rng rng(1);
  const gpu::OwnedStream stream(gpu_device());
  const gpu::Buffer values(gpu_device(), kWaveThreads * 4);
  const gpu::Buffer results(gpu_device(), kWaveThreads * static_cast<int64_t>(sizeof(WaveResult)));
  for (const int size : {8, 16, 32, gpu::properties(0).wave_size})
    for (const uint32_t most : {0u, 1u, 3u, 255u, 100'000u}) {
      SCOPED_TRACE(testing::Message() << "wave of " << size << ", values to " << most);
      std::vector<uint32_t> host(kWaveThreads);
      for (uint32_t& value : host) value = static_cast<uint32_t>(rng() % (most + 1));
      gpu::copy(values.data(), host.data(), values.bytes(), stream.get());
      launch_wave_operations(size, values.as<uint32_t>(), results.as<WaveResult>(), stream.get());
      std::vector<WaveResult> got(kWaveThreads);
      gpu::copy(got.data(), results.data(), results.bytes(), stream.get());
      gpu::synchronize(stream.get());
      for (int at = 0; at < kWaveThreads; ++at) {
        SCOPED_TRACE(testing::Message() << "thread " << at);
        const WaveResult want = expected(host, size, at);
        EXPECT_EQ(got[at].ballot, want.ballot);
        EXPECT_EQ(got[at].match, want.match);
        EXPECT_EQ(got[at].below, want.below);
        EXPECT_EQ(got[at].lane, want.lane);
        EXPECT_EQ(got[at].wave, want.wave);
        EXPECT_EQ(got[at].from_mirror, want.from_mirror);
        EXPECT_EQ(got[at].from_below, want.from_below);
        EXPECT_EQ(got[at].sum_below, want.sum_below);
        EXPECT_EQ(got[at].sums_below[0], want.sums_below[0]);
        EXPECT_EQ(got[at].sums_below[1], want.sums_below[1]);
        EXPECT_EQ(got[at].largest, want.largest);
        EXPECT_EQ(got[at].sum, want.sum);
        if (HasFailure()) return;
      }
    }
}

TEST_F(WaveGpu, PacketsAndConditionalAdds) {
  constexpr int kPackets = 1000;
  const gpu::OwnedStream stream(gpu_device());
  const gpu::Buffer from(gpu_device(), kPackets * 16), to(gpu_device(), kPackets * 16), added(gpu_device(), 16);
  std::vector<uint32_t> words(kPackets * 4), got(kPackets * 4);
  std::iota(words.begin(), words.end(), 7u);
  gpu::copy(from.data(), words.data(), from.bytes(), stream.get());
  launch_packets(from.data(), to.data(), kPackets, added.as<uint32_t>(), stream.get());
  std::vector<uint32_t> counts(4), want(4);
  gpu::copy(got.data(), to.data(), to.bytes(), stream.get());
  gpu::copy(counts.data(), added.data(), added.bytes(), stream.get());
  gpu::synchronize(stream.get());
  for (int i = 0; i < kPackets; i += 3) ++want[i % 4];
  EXPECT_EQ(got, words);
  EXPECT_EQ(counts, want);
}

TEST_F(WaveGpu, GridBarrierOrdersAllBlocks) {
  constexpr int kRounds = 200;
  const gpu::OwnedStream stream(gpu_device());
  const gpu::Buffer barrier(gpu_device(), 4), wrong(gpu_device(), 4);
  for (const uint32_t blocks : {1u, 2u, static_cast<uint32_t>(gpu::num_multiprocessors(0))}) {
    SCOPED_TRACE(blocks);
    const gpu::Buffer words(gpu_device(), blocks * 4);
    launch_grid_rounds(blocks, kRounds, words.as<uint32_t>(), barrier.as<uint32_t>(), wrong.as<uint32_t>(), stream.get());
    uint32_t num_wrong = 1, state = 1;
    gpu::copy(&num_wrong, wrong.data(), 4, stream.get());
    gpu::copy(&state, barrier.data(), 4, stream.get());
    gpu::synchronize(stream.get());
    EXPECT_EQ(num_wrong, 0u);
    EXPECT_EQ(state & 0x7fffffffu, 0u) << "the next launch finds the barrier as this one did";
  }
}

}  // namespace
}  // namespace mixlane
