// The peaks of a real GPU: plausible, and taken by kernels that do what they say.
#include "doctor/gpu_peaks.hpp"

#include <cmath>
#include <set>

#include "doctor/gpu_kernels.hpp"
#include "support/errors.hpp"
#include "support/gpu.hpp"

namespace mixlane::bench {
namespace {

using mixlane::test::gpu_device;

class GpuPeaks : public mixlane::test::GpuTest {};

constexpr GpuPeakOptions kQuick = {.seconds = 0.05, .bytes = 256 << 20};

TEST_F(GpuPeaks, OfOneGpuArePlausible) {
  const Peaks peaks = measure_gpu(gpu_device(), kQuick);
  EXPECT_GT(peaks.copy_gbs, 100);
  EXPECT_LT(peaks.copy_gbs, 30'000);
  EXPECT_GT(peaks.read_gbs, 100);
  EXPECT_GT(peaks.launch_us, 0.5);
  EXPECT_LT(peaks.launch_us, 100);
  EXPECT_GT(peaks.graph_node_us, 0.1);
  EXPECT_LT(peaks.graph_node_us, 20);
  if (kHasTensorCoreKernel && gpu::compute_capability(0) == 90) {
    EXPECT_GT(peaks.bf16_tflops, 200);
    EXPECT_LT(peaks.bf16_tflops, 1'000) << "more than the chip has";
    EXPECT_GT(peaks.fp8_tflops, 1.5 * peaks.bf16_tflops);
    EXPECT_LT(peaks.fp8_tflops, 2'000);
    EXPECT_TRUE(peaks.skipped.empty()) << peaks.skipped.front();
  } else {
    EXPECT_EQ(peaks.bf16_tflops, 0);
    EXPECT_EQ(peaks.skipped.size(), 2u);
  }
}

TEST_F(GpuPeaks, OfAGroupSayWhatWasNotMeasured) {
  const Peaks peaks = measure_gpu_peaks({gpu_device()}, kQuick);
  EXPECT_GT(peaks.copy_gbs, 0);
  EXPECT_EQ(peaks.peer_write_gbs, 0);
  const std::set<std::string> skipped(peaks.skipped.begin(), peaks.skipped.end());
  EXPECT_TRUE(skipped.count("peers: one GPU has no peer"));
  mixlane::test::expect_error(ErrorCode::invalid_argument, {"no GPU"}, [] { measure_gpu_peaks({}); });
  mixlane::test::expect_error(ErrorCode::invalid_argument, {"0 s"}, [] { measure_gpu(gpu_device(), {.seconds = 0}); });
  mixlane::test::expect_error(ErrorCode::unsupported, {"backend", "cpu"}, [] {
    measure_gpu_peaks({Device{DeviceType::cpu, 0}}, kQuick);
  });
}

TEST_F(GpuPeaks, AGpuIsNoPeerOfItself) {
  const PeerPeaks peaks = measure_pair(gpu_device(), gpu_device(), kQuick);
  EXPECT_NE(peaks.problem.find("no peer of itself"), std::string::npos) << peaks.problem;
}

TEST_F(GpuPeaks, OfTwoGpusArePlausible) {
  if (gpu::num_devices() < 2) GTEST_SKIP() << "one GPU has no peer";
  const Device second{gpu::kDeviceType, 1};
  const PeerPeaks peaks = measure_pair(gpu_device(), second, kQuick);
  if (!peaks.problem.empty()) GTEST_SKIP() << peaks.problem;
  for (const double rate : {peaks.write_gbs, peaks.read_gbs, peaks.copy_engine_gbs}) {
    EXPECT_GT(rate, 5);
    EXPECT_LT(rate, 2'000);
  }
  EXPECT_GT(peaks.flag_us, 0.1);
  EXPECT_LT(peaks.flag_us, 20);
  EXPECT_EQ(measure_gpu_peaks({gpu_device(), second}, kQuick).peer_write_gbs > 5, true);
}

TEST_F(GpuPeaks, EveryByteIsCopied) {
  constexpr int64_t kBytes = 3 * kStreamBytes;
  const gpu::OwnedStream stream(gpu_device());
  const gpu::Buffer from(gpu_device(), kBytes), to(gpu_device(), kBytes + 16), sink(gpu_device(), 4);
  launch_fill(from.data(), kBytes, stream.get());
  launch_copy(to.data(), from.data(), kBytes, stream.get());
  launch_read(from.data(), kBytes, sink.as<uint32_t>(), stream.get());
  std::vector<uint32_t> source(kBytes / 4), copied(kBytes / 4 + 4);
  uint32_t sunk = 1;
  gpu::copy(source.data(), from.data(), kBytes, stream.get());
  gpu::copy(copied.data(), to.data(), kBytes + 16, stream.get());
  gpu::copy(&sunk, sink.data(), 4, stream.get());
  gpu::synchronize(stream.get());
  EXPECT_TRUE(std::equal(source.begin(), source.end(), copied.begin()));
  EXPECT_EQ(copied.back(), 0u) << "nothing behind the end";
  EXPECT_GT(std::set<uint32_t>(source.begin(), source.end()).size(), source.size() * 99 / 100) << "no pattern";
  EXPECT_EQ(sunk, 0u);
}

// Two streams of one GPU play two GPUs.
TEST_F(GpuPeaks, FlagsTakeTurnsAndGiveUp) {
  const gpu::OwnedStream first(gpu_device()), second(gpu_device());
  const gpu::Buffer memory(gpu_device(), 64);
  PingPong ping = {.own = memory.as<uint32_t>(),
                   .others = memory.as<uint32_t>() + 8,
                   .elapsed_ns = memory.as<uint64_t>() + 1,
                   .limit_ns = 20'000'000,
                   .num_rounds = 100,
                   .begins = 1};
  PingPong pong = ping;
  std::swap(pong.own, pong.others);
  pong.elapsed_ns = memory.as<uint64_t>() + 5;
  pong.begins = 0;
  const auto elapsed = [&] {
    uint64_t ns[8];
    for (const auto* stream : {&first, &second}) gpu::synchronize(stream->get());
    gpu::copy(ns, memory.data(), 64, first.get());
    gpu::synchronize(first.get());
    return std::pair{ns[1], ns[5]};
  };
  launch_ping_pong(ping, first.get());
  launch_ping_pong(pong, second.get());
  EXPECT_GT(elapsed().first, 100u * 100);
  EXPECT_GT(elapsed().second, 100u * 100);

  gpu::fill(memory.data(), 0, 64, first.get());
  gpu::synchronize(first.get());
  launch_ping_pong(ping, first.get());
  EXPECT_EQ(elapsed().first, 0u) << "nobody answers";
}

// Sums of 256 or 512 products of normal values, another one in each block.
TEST_F(GpuPeaks, TensorCoresMultiplyRandomValues) {
  if (!kHasTensorCoreKernel || gpu::compute_capability(0) != 90) GTEST_SKIP() << "needs sm_90";
  const gpu::OwnedStream stream(gpu_device());
  const int blocks = gpu::num_multiprocessors(0);
  const gpu::Buffer sink(gpu_device(), blocks * 4);
  for (const auto& [dtype, depth] : {std::pair{DType::bf16, 256.0}, std::pair{DType::fp8_e4m3, 512.0}}) {
    launch_tensor_cores(dtype, 3, blocks, sink.as<float>(), stream.get());
    std::vector<float> sums(blocks);
    gpu::copy(sums.data(), sink.data(), sink.bytes(), stream.get());
    gpu::synchronize(stream.get());
    double squares = 0;
    for (const float sum : sums) squares += double{sum} * sum;
    const double deviation = std::sqrt(squares / blocks);
    EXPECT_GT(deviation, 0.7 * std::sqrt(depth)) << name(dtype);
    EXPECT_LT(deviation, 1.4 * std::sqrt(depth)) << name(dtype);
    EXPECT_EQ(tensor_core_flops(dtype), static_cast<int64_t>(2 * 128 * 256 * depth));
  }
}

}  // namespace
}  // namespace mixlane::bench
