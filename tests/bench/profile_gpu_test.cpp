// Kernel times of a real GPU: which kernels ran, when, and whose they are.
#include "measure/clock.hpp"
#include "mixlane/align.hpp"
#include "profile/kernel_names.hpp"
#include "profile/kernel_profile.hpp"
#include "support/gpu.hpp"

namespace mixlane::bench {
namespace {

using mixlane::test::gpu_device;

class ProfilerGpu : public mixlane::test::GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (!profiler_.missing().empty()) GTEST_SKIP() << profiler_.missing();
  }

  KernelProfiler profiler_{Env::read()};
};

// An align of four rows that is ready to run.
class SmallAlign {
 public:
  SmallAlign() {
    args.topk_ids = {memory_.as<char>(), DType::i32, {4, 2}, gpu_device()};
    args.num_experts = 4;
    args.block = 4;
    args.sorted_pairs = {memory_.as<char>() + 256, DType::i32, {32}, gpu_device()};
    args.num_padded = {memory_.as<char>() + 512, DType::i32, {2}, gpu_device()};
    args.variant = "align.none";
  }
  void run(Stream stream) { align(context_, args, stream); }

  AlignArgs args;

 private:
  gpu::Buffer memory_{gpu_device(), 1024};
  Context context_{{.device = gpu_device()}};
};

TEST_F(ProfilerGpu, KernelsOfAStreamAndOfAGraph) {
  constexpr int kEager = 3, kReplays = 2;
  constexpr int64_t kTolerance = 100'000;  // between the clocks
  SmallAlign work;
  const gpu::OwnedStream stream(gpu_device());
  const gpu::Graph graph = gpu::Graph::capture(gpu_device(), [&](Stream captured) { work.run(captured); });
  graph.launch(stream.get());
  gpu::synchronize(stream.get());

  const int64_t before = now_ns();
  profiler_.start();
  for (int i = 0; i < kEager; ++i) work.run(stream.get());
  for (int i = 0; i < kReplays; ++i) graph.launch(stream.get());
  gpu::synchronize(stream.get());
  const int64_t after = now_ns();
  const KernelProfile profile = profiler_.stop();

  EXPECT_EQ(profile.num_dropped, 0);
  ASSERT_EQ(profile.spans.size(), size_t{kEager + kReplays});
  int64_t last_begin = before - kTolerance;
  for (size_t i = 0; i < profile.spans.size(); ++i) {
    const KernelSpan& span = profile.spans[i];
    SCOPED_TRACE(span.symbol);
    EXPECT_EQ(variant_of_kernel(span.symbol, {}), "align.none");
    EXPECT_EQ(span.in_graph(), i >= kEager);
    EXPECT_GE(span.begin_ns, last_begin);
    EXPECT_LE(span.end_ns, after + kTolerance);
    EXPECT_GT(span.us(), 0.3);
    EXPECT_LT(span.us(), 1000);
    EXPECT_EQ(span.device, 0);
    EXPECT_GE(span.grid[0], 1);
    EXPECT_EQ(span.block[0] % 32, 0);
    last_begin = span.begin_ns;
  }
  EXPECT_EQ(profile.spans[kEager].graph_node, profile.spans[kEager + 1].graph_node);
}

TEST_F(ProfilerGpu, OnlyWhatRunsInBetween) {
  SmallAlign work;
  const gpu::OwnedStream stream(gpu_device());
  const auto run_once = [&] {
    work.run(stream.get());
    gpu::synchronize(stream.get());
  };
  run_once();
  for (const int count : {0, 2, 0, 1}) {
    profiler_.start();
    EXPECT_ANY_THROW(profiler_.start());
    for (int i = 0; i < count; ++i) run_once();
    EXPECT_EQ(profiler_.stop().spans.size(), static_cast<size_t>(count));
    EXPECT_ANY_THROW(profiler_.stop());
    run_once();
  }
}

}  // namespace
}  // namespace mixlane::bench
