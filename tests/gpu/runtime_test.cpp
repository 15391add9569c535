// The GPU runtime: what it refuses and in which words, capture, events.
#include "gpu/runtime.hpp"

#include "support/errors.hpp"
#include "support/gpu.hpp"
#include "wave.hpp"

namespace mixlane {
namespace {

using namespace test;

class RuntimeGpu : public GpuTest {};

TEST(Runtime, AMachineWithoutAGpuSaysSo) {
  std::string why;
  if (gpu::num_devices(&why) > 0) GTEST_SKIP() << "there is a GPU";
  EXPECT_NE(why, "");
  expect_error(ErrorCode::unsupported, {why, "use a cpu device"}, [] { Context context({.device = gpu_device()}); });
  expect_error(ErrorCode::unsupported, {why}, [] { gpu::Buffer buffer(gpu_device(), 16); });
}

TEST_F(RuntimeGpu, RefusesWhatIsNotThere) {
  const int count = gpu::num_devices();
  expect_error(ErrorCode::invalid_argument, {std::to_string(count), "does not exist"}, [&] {
    gpu::OwnedStream stream({gpu::kDeviceType, count});
  });
  expect_error(ErrorCode::invalid_argument, {"-1", "does not exist"}, [&] {
    gpu::Buffer buffer({gpu::kDeviceType, -1}, 16);
  });
  expect_error(ErrorCode::unsupported, {"backend"}, [] {
    gpu::OwnedStream stream({gpu::kDeviceType == DeviceType::cuda ? DeviceType::hip : DeviceType::cuda, 0});
  });
}

TEST_F(RuntimeGpu, ErrorsNameTheCallAndWhatItWasFor) {
  const gpu::OwnedStream stream(gpu_device());
  expect_error(ErrorCode::out_of_memory, {"taking 1152921504606846976 bytes of device 0", "Malloc failed"},
               [] { gpu::Buffer buffer(gpu_device(), int64_t{1} << 60); });
  expect_error(ErrorCode::internal,
               {"launching test.nothing with 3 blocks of 2048 threads, 64 bytes of shared memory", "failed"},
               [&] { launch_shape(3, 2048, 64, stream.get()); });
  expect_error(ErrorCode::internal, {"allowing test.nothing 16777216 bytes of shared memory", "FuncSetAttribute failed"},
               [&] { launch_shape(1, 32, 16 << 20, stream.get()); });
  int host = 0;
  expect_error(ErrorCode::internal, {"copying 4 bytes on device 0", "MemcpyAsync failed"},
               [&] { gpu::copy(nullptr, &host, 4, stream.get()); });
  // None of them is left behind for the next call.
  launch_shape(3, 32, 64, stream.get());
  gpu::synchronize(stream.get());
}

TEST_F(RuntimeGpu, ACaptureThatFailsLeavesNothingBehind) {
  const gpu::OwnedStream stream(gpu_device());
  EXPECT_FALSE(gpu::is_capturing(stream.get()));
  expect_error(ErrorCode::invalid_argument, {"no such work"}, [] {
    gpu::Graph::capture(gpu_device(), [](Stream captured) {
      EXPECT_TRUE(gpu::is_capturing(captured));
      launch_shape(1, 32, 0, captured);
      throw Error(ErrorCode::invalid_argument, "no such work");
    });
  });
  const gpu::Graph graph = gpu::Graph::capture(gpu_device(), [](Stream captured) { launch_shape(1, 32, 0, captured); });
  graph.launch(stream.get());
  gpu::synchronize(stream.get());
}

TEST_F(RuntimeGpu, EventsOrderStreamsAndTakeTimes) {
  constexpr int64_t kBytes = int64_t{64} << 20;
  const gpu::OwnedStream first(gpu_device()), second(gpu_device());
  const gpu::Buffer memory(gpu_device(), kBytes);
  gpu::Event begin, filled, end;
  begin.record(first.get());
  for (int i = 0; i < 20; ++i) gpu::fill(memory.data(), static_cast<uint8_t>(i), kBytes, first.get());
  filled.record(first.get());
  filled.hold(second.get());
  uint8_t last = 0xff;
  gpu::copy(&last, memory.as<uint8_t>() + kBytes - 1, 1, second.get());
  end.record(second.get());
  end.wait();
  EXPECT_EQ(last, 19);
  EXPECT_GT(gpu::Event::elapsed_us(begin, filled), 20.0);
  EXPECT_GE(gpu::Event::elapsed_us(begin, end), gpu::Event::elapsed_us(begin, filled));
}

}  // namespace
}  // namespace mixlane
