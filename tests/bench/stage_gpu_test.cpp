// Stages alone on a GPU: every stage's check passes for what it computes and fails for anything else, and a sweep stores
// what it was asked for.
#include <gtest/gtest.h>

#include "results/collect.hpp"
#include "run/options.hpp"
#include "stage/stage.hpp"
#include "stage/sweep.hpp"
#include "support/files.hpp"
#include "support/gpu.hpp"

namespace mixlane::bench {
namespace {

using mixlane::test::gpu_device;

// Groups, a bias and zero experts, as far as they go together.
Model grouped_model() {
  Model model;
  model.name = "grouped";
  model.hidden = 256;
  model.intermediate = 64;
  model.correction_bias = true;
  model.routing.num_experts = 64;
  model.routing.num_topk = 4;
  model.routing.scoring = Scoring::sigmoid;
  model.routing.renormalize = true;
  model.routing.num_groups = 8;
  model.routing.topk_groups = 3;
  return model;
}

class StageGpu : public mixlane::test::GpuTest {};

TEST_F(StageGpu, ChecksPassForResultsAndFailForPoison) {
  Context cpu({.num_threads = 2}), gpu({.device = gpu_device()});
  Model with_zero_experts = grouped_model();
  with_zero_experts.routing.num_groups = with_zero_experts.routing.topk_groups = 1;
  with_zero_experts.routing.num_zero_experts = 3;
  StageOptions options;
  options.align_blocks = {16, 64};
  options.id_types = {DType::i32, DType::i64};
  options.logits_types = {DType::f32, DType::bf16};
  options.quant_groups = {ScaleGroup::group_1x128, ScaleGroup::row, ScaleGroup::block_128x128, ScaleGroup::group_1x32};
  options.quant_types = {DType::bf16, DType::f16, DType::f32};
  options.quant_scales_by_column = {false, true};
  options.experts_outputs = {ExpertsOutput::pairs, ExpertsOutput::tokens};
  options.batch_invariant = {false, true};
  const gpu::OwnedStream stream(gpu_device());
  for (const Model& model : {grouped_model(), with_zero_experts}) {
    StageInputs inputs({model, QuantFormat::none, 77, parse_workload("zipf:1.1"), 1, 3}, cpu);
    for (const StageKind& kind : stage_kinds()) {
      int num_cases = 0;
      for (const auto& stage : kind.make({gpu, inputs, options, true})) {
        SCOPED_TRACE(std::string(kind.name) + " " + stage->options());
        const int set = stage->num_sets() - 1;
        EXPECT_GT(set, 0);
        for (int each = 0; each <= set; ++each) stage->poison(stream.get(), each);
        EXPECT_FALSE(stage->verify(stream.get(), set).passed);
        stage->enqueue(stage->automatic(), stream.get(), set);
        const Correctness check = stage->verify(stream.get(), set);
        EXPECT_TRUE(check.passed) << check.rel_error;
        EXPECT_EQ(check.checked_tokens, 77);
        EXPECT_FALSE(stage->verify(stream.get(), 0).passed) << "the call went to another set";
        EXPECT_GT(stage->work().bytes, 0);
        ++num_cases;
      }
      EXPECT_EQ(num_cases, kind.name == "chain" ? 2 : kind.name == "quant" || kind.name == "dequant" ? 24 : 4);
    }
  }
}

TEST_F(StageGpu, ASweepStoresARecordPerCondition) {
  const mixlane::test::TempFolder folder;
  mixlane::test::write_file(folder / "tiny.json",
                            R"({"name": "tiny", "hidden": 256, "intermediate": 32, "activation": {"kind": "swiglu"},
                                "routing": {"num_experts": 8, "num_topk": 2, "scoring": "softmax"}, "source": "tests"})");
  BenchArguments arguments;
  arguments.model = (folder / "tiny.json").string();
  arguments.out = folder / "runs";
  arguments.device = name(gpu_device().type);
  arguments.tokens = {1, 33};
  arguments.has_tokens = true;
  arguments.workload = {"balanced", "one_expert"};
  arguments.mode = {"eager", "graph"};
  arguments.cache = {"hot", "cold"};
  arguments.variants = {"align=all"};
  arguments.max_time_s = 0.01;
  arguments.max_samples = 8;
  arguments.peak_time_s = 0;
  arguments.quiet = true;
  EXPECT_EQ(run_stage_sweep(resolve(arguments, {"mixlane", "bench"})), 0);
  const Collection found = collect_results(arguments.out);
  ASSERT_EQ(found.files.size(), 1u);
  const ResultFile& file = found.files[0];
  EXPECT_TRUE(file.complete);
  EXPECT_EQ(file.device, name(gpu_device().type));
  EXPECT_NE(file.environment.at("gpu"), "");
  ASSERT_EQ(file.records.size(), 16u);
  for (const Record& record : file.records) {
    int automatic = 0;
    for (const StageRecord& stage : record.stages) {
      SCOPED_TRACE(stage.variant + " " + stage.options);
      EXPECT_TRUE(stage.correctness.passed);
      EXPECT_GT(stage.time.median_us, 0);
      EXPECT_LE(stage.time.n, 8);
      EXPECT_GE(stage.calls_per_sample, 1);
      automatic += stage.automatic;
    }
    EXPECT_EQ(automatic, 6) << "one of routing, quant, dequant, align, chain and experts";
    EXPECT_GT(record.stages.size(), 6u) << "align in several variants";
  }
  // The same command again has nothing to do but to begin anew.
  EXPECT_EQ(run_stage_sweep(resolve(arguments, {"mixlane", "bench"})), 0);
  EXPECT_EQ(collect_results(arguments.out).files.size(), 2u);
}

}  // namespace
}  // namespace mixlane::bench
