// "auto" on a GPU: tuned tables, the model where there is none, and what the context says about it.
#include "ops/experts/choose.hpp"

#include "case.hpp"
#include "io/tuned.hpp"
#include "mixlane/tuning.hpp"
#include "ops/experts/op.hpp"
#include "ops/experts/wgmma/config.hpp"
#include "support/files.hpp"
#include "support/gpu.hpp"

namespace mixlane::test {
namespace {

TEST(ExpertsChoice, KeysSayFormatShapeAndSize) {
  for (const QuantFormat format : kFormats) {
    ExpertsShape shape;
    shape.format = format;
    ExpertsCase test(shape, 1);
    ExpertsArgs args = test.args();
    args.rows.shape[0] = 5;
    args.num_topk = 2;
    const std::string text = key_text(experts_tune_space(), experts_key(args));
    EXPECT_EQ(text, fmt::format("quant={} experts=4 hidden=64 intermediate=48 topk=2 tokens=8", name(format)));
  }
}

TEST(ExpertsChoice, SizesArePowersOfTwoOfPairs) {
  EXPECT_EQ(kExpertsBuckets.end(1, 8), 1);
  EXPECT_EQ(kExpertsBuckets.end(3, 8), 4);
  EXPECT_EQ(kExpertsBuckets.end(4096, 8), 4096);
  EXPECT_EQ(kExpertsBuckets.end(4097, 8), 8192);
  EXPECT_EQ(kExpertsBuckets.end(2, 6), 2) << "12 pairs of at most 16";
  EXPECT_EQ(kExpertsBuckets.end(3, 6), 5) << "18 pairs of at most 32";
  EXPECT_EQ(kExpertsBuckets.end(1'000'000, 8), 32768) << "the largest stands for all above";
  EXPECT_EQ(kExpertsBuckets.end(0, 8), 1);
  for (const int64_t topk : {1, 2, 3, 6, 8, 10, 22})
    for (int64_t rows = 1; rows < 100'000; rows += 1 + rows / 7) {
      const int64_t bucket = kExpertsBuckets.end(rows, topk);
      EXPECT_EQ(kExpertsBuckets.end(bucket, topk), bucket) << rows << " x " << topk;
      EXPECT_GE(bucket, std::min<int64_t>(rows, (1 << 18) / topk)) << rows << " x " << topk;
    }
}

// Decoding for mma.sync is never the better choice where both run.
TEST(ExpertsChoice, ModelPrefersWgmmaToMma) {
  for (const QuantFormat format : kFormats)
    for (const int rows : {1, 40, 4000}) {
      ExpertsShape shape;
      shape.format = format;
      ExpertsCase test(shape, 1);
      ExpertsArgs args = test.args();
      args.rows.shape[0] = rows;
      for (const WgmmaConfig config : wgmma_candidates(format))
        EXPECT_LT(estimate_wgmma_us(wgmma_shape(args, 132), config), estimate_experts_mma(args, 132));
    }
}

class ExpertsChoiceGpu : public GpuTest {
 protected:
  // A shape that no installed table has; nothing of it is read.
  ExpertsChoiceGpu() : test_(ExpertsShape{}, 1) {}
  ExpertsArgs args() {
    ExpertsArgs args = test_.args();
    for (ConstTensorView* view : {&args.weights.gate_up, &args.weights.down, &args.rows, &args.sorted_pairs,
                                  &args.expert_counts, &args.expert_offsets})
      view->device = gpu_device();
    args.output.device = gpu_device();
    args.rows.data = args.weights.gate_up.data = args.weights.down.data = args.output.data = aligned_;
    return args;
  }
  alignas(16) std::byte aligned_[16];
  ExpertsCase test_;
};

TEST_F(ExpertsChoiceGpu, ModelChoosesAndSaysSoOnce) {
  Context context({.device = gpu_device()});
  const std::string first(select_experts(context, args()).info.id);
  EXPECT_EQ(first, gpu::compute_capability(0) == 90 ? "experts.wgmma" : "experts.mma");
  if (first == "experts.mma") return;
  select_experts(context, args());
  ASSERT_EQ(context.notices().size(), 1u);
  EXPECT_NE(context.notices()[0].find("quant=none experts=4 hidden=64 intermediate=48 topk=2"), std::string::npos)
      << context.notices()[0];
  EXPECT_NE(
      context.notices()[0].find("`mixlane tune --stage experts --quant none --hidden 64 --intermediate 48 --shapes 4x2"),
      std::string::npos)
      << context.notices()[0];
}

TEST_F(ExpertsChoiceGpu, ATableDecides) {
  if (gpu::compute_capability(0) != 90) GTEST_SKIP() << "one candidate here";
  Context context({.device = gpu_device()});
  const PackedKey key = experts_key(args());
  const TunedTable table{.file = "",
                         .stage = "experts",
                         .machine = gpu_machine(gpu_device()),
                         .fields = {"quant", "experts", "hidden", "intermediate", "topk", "tokens"},
                         .runs = {{"2026-01-01T00:00:00Z", "a GPU", "a driver", "a commit", "a command"}},
                         .entries = {{.key = {"none", key[1], key[2], key[3], key[4], key[5]},
                                      .choice = "experts.wgmma_narrow",
                                      .run = 0,
                                      .measured_us = {}}}};
  const TempFolder folder;
  write_file(folder / tuned_file_name(table), tuned_json(table));
  load_tuned(context, folder.path().string());
  EXPECT_EQ(select_experts(context, args()).info.id, "experts.wgmma_narrow");
  EXPECT_TRUE(context.notices().empty());
}

}  // namespace
}  // namespace mixlane::test
