// The device vocabulary that orders blocks and kernels: flags of both scopes, the clock, overlapping kernels.
#include "ordered.hpp"

#include "support/gpu.hpp"

namespace mixlane {
namespace {

using namespace test;

class OrderedGpu : public GpuTest {
 protected:
  template <class T>
  static T fetch(const gpu::Buffer& memory, Stream stream) {
    T value;
    gpu::copy(&value, memory.data(), sizeof(T), stream);
    gpu::synchronize(stream);
    return value;
  }
};

TEST_F(OrderedGpu, MessagesArriveBeforeTheirFlags) {
  constexpr int kRounds = 2000;
  const gpu::OwnedStream stream(gpu_device());
  for (const bool system_scope : {false, true}) {
    SCOPED_TRACE(system_scope);
    const gpu::Buffer memory(gpu_device(), sizeof(Mailbox));
    launch_messages(system_scope, kRounds, memory.as<Mailbox>(), stream.get());
    const auto mailbox = fetch<Mailbox>(memory, stream.get());
    EXPECT_EQ(mailbox.wrong, 0u);
    EXPECT_EQ(mailbox.flag, static_cast<uint32_t>(kRounds));
    EXPECT_EQ(mailbox.acknowledged, static_cast<uint32_t>(kRounds)) << "nobody gave up";
    // The clock is one for all blocks.
    for (int block = 0; block < 2; ++block) EXPECT_LT(mailbox.begin_ns[block], mailbox.end_ns[1 - block]);
  }
}

TEST_F(OrderedGpu, TheClockCountsNanoseconds) {
  const gpu::OwnedStream stream(gpu_device());
  launch_spin(1000, stream.get());
  gpu::Event begin, end;
  begin.record(stream.get());
  launch_spin(5'000'000, stream.get());
  end.record(stream.get());
  end.wait();
  EXPECT_GT(gpu::Event::elapsed_us(begin, end), 4'900);
  EXPECT_LT(gpu::Event::elapsed_us(begin, end), 7'500);
}

TEST_F(OrderedGpu, OverlappingKernelsSeeWhatTheyWaitFor) {
  const gpu::OwnedStream stream(gpu_device());
  const bool can_overlap = gpu::kDeviceType == DeviceType::cuda && gpu::compute_capability(0) >= 90;
  for (const bool overlap : {false, true}) {
    if (overlap && !can_overlap) continue;
    const gpu::Buffer memory(gpu_device(), sizeof(OverlapTimes));
    int early = 0;
    for (uint32_t round = 1; round <= 20; ++round) {
      launch_overlapping(200'000, round, overlap, memory.as<OverlapTimes>(), stream.get());
      const auto times = fetch<OverlapTimes>(memory, stream.get());
      EXPECT_EQ(times.seen, round);
      early += times.second_begin_ns < times.first_end_ns ? 1 : 0;
    }
    if (overlap)
      EXPECT_GT(early, 0) << "none of twenty started early";
    else
      EXPECT_EQ(early, 0);
  }
}

}  // namespace
}  // namespace mixlane
