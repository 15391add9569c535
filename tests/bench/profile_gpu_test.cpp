// Kernel times of a real GPU: which kernels ran, when, and whose they are.
#include "measure/clock.hpp"
#include "mixlane/align.hpp"
#include "profile/kernel_names.hpp"
#include "profile/kernel_profile.hpp"
#include "run/variants.hpp"
#include "stage/kernel_times.hpp"
#include "stage/stage.hpp"
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

// No time of a stage is left unattributed, whichever variant takes it. Experts have helpers, and some quantise first.
TEST_F(ProfilerGpu, EveryKernelOfAStageBelongsToItsVariant) {
  Context cpu({.num_threads = 2}), context({.device = gpu_device()});
  Model model;
  model.name = "small";
  model.hidden = 256;
  model.intermediate = 128;
  model.routing.num_experts = 128;
  model.routing.num_topk = 4;
  StageOptions options;
  options.quant_groups = {ScaleGroup::group_1x128, ScaleGroup::row, ScaleGroup::block_128x128, ScaleGroup::group_1x32};
  options.quant_types = {DType::bf16, DType::f32};
  std::vector<std::string> known;
  for (const StageVariants& each : lone_stage_variants())
    for (const VariantInfo& info : each.variants)
      if (info.device == gpu_device().type) known.emplace_back(info.id);
  const gpu::OwnedStream stream(gpu_device());
  for (const int tokens : {16, 5000}) {
    StageInputs inputs({model, QuantFormat::fp8_block, tokens, parse_workload("balanced"), 1, 3}, cpu);
    for (const StageKind& kind : stage_kinds())
      for (const auto& stage : kind.make({context, inputs, options})) {
        std::vector<std::string> ids = {stage->automatic()};
        for (const std::string& id : known)
          if (kind.name != "chain" && id.starts_with(std::string(kind.name) + ".") && stage->refusal(id).empty())
            ids.push_back(id);
        for (const std::string& id : ids) {
          SCOPED_TRACE(fmt::format("{} {} of {} tokens", id, stage->options(), tokens));
          stage->enqueue(id, stream.get(), 0);
          gpu::synchronize(stream.get());
          profiler_.start();
          stage->enqueue(id, stream.get(), 0);
          gpu::synchronize(stream.get());
          const KernelProfile profile = profiler_.stop();
          const size_t num_calls = kind.name == "chain" ? 3 : 1;
          EXPECT_TRUE(kind.name == "experts" || profile.spans.size() == num_calls) << "one launch per call";
          const std::vector<KernelTime> times = attribute_kernels(profile, known, 1);
          int own = 0;
          for (const KernelTime& time : times) {
            const bool is_own = !time.variant.empty() && id.find(time.variant) != std::string::npos;
            own += is_own;
            EXPECT_TRUE(is_own || (kind.name == "experts" && !time.variant.empty())) << time.variant;
          }
          EXPECT_GT(own, 0);
        }
      }
  }
}

}  // namespace
}  // namespace mixlane::bench
