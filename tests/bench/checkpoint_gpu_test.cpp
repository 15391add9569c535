// The experts stage on the weights of a checkpoint.
#include "gpu/runtime.hpp"
#include "io/test_checkpoint.hpp"
#include "results/collect.hpp"
#include "run/options.hpp"
#include "stage/checkpoint_experts.hpp"
#include "stage/stage.hpp"
#include "stage/sweep.hpp"
#include "support/errors.hpp"
#include "support/gpu.hpp"

namespace mixlane::bench {
namespace {

using namespace mixlane::test;

class CheckpointStageGpu : public GpuTest {
 protected:
  static Model model_of_the_file() {
    Model model = tiny_model(128, 64, 6);
    model.routing.renormalize = true;
    return model;
  }
  void write(DType dtype) {
    TestCheckpoint checkpoint(8);
    add_mixtral(checkpoint, model_of_the_file(), "model.layers.4.", dtype);
    checkpoint.write(folder.path(), 2);
    write_file(folder / "tiny.json",
               R"({"name": "tiny", "hidden": 128, "intermediate": 64, "activation": {"kind": "swiglu"},
                   "routing": {"num_experts": 6, "num_topk": 2, "scoring": "softmax", "renormalize": true}, "source": "tests"})");
  }
  BenchArguments arguments() const {
    BenchArguments a;
    a.model = (folder / "tiny.json").string();
    a.out = folder / "runs";
    a.device = name(gpu_device().type);
    a.checkpoint = folder.path();
    a.checkpoint_layer = 4;
    a.ranks = 2;
    a.tokens = {5, 33};
    a.has_tokens = true;
    a.stages = {"experts"};
    a.max_time_s = 0.01;
    a.max_samples = 8;
    a.peak_time_s = 0;
    a.quiet = true;
    return a;
  }
  static BenchOptions resolved(const BenchArguments& a) { return resolve(a, {"mixlane", "bench"}); }

  TempFolder folder;
};

TEST_F(CheckpointStageGpu, ASweepChecksAndTimesTheLayersExperts) {
  write(DType::fp8_e4m3);
  BenchArguments a = arguments();
  a.quant = {"none", "fp8", "mxfp4"};
  EXPECT_EQ(run_stage_sweep(resolved(a)), 0);
  const Collection found = collect_results(a.out);
  ASSERT_EQ(found.files.size(), 3u);
  for (const ResultFile& file : found.files) {
    SCOPED_TRACE(file.quant);
    EXPECT_TRUE(file.complete);
    const std::string& weights = file.environment.at("weights");
    for (const std::string& mention : {folder.path().string(), std::string("layer 4, 3 experts"), std::string("GB/s")})
      EXPECT_NE(weights.find(mention), std::string::npos) << weights;
    ASSERT_EQ(file.records.size(), 2u);
    for (const Record& record : file.records) {
      ASSERT_EQ(record.stages.size(), 1u);
      EXPECT_TRUE(record.stages[0].correctness.passed);
      EXPECT_GT(record.stages[0].correctness.checked_tokens, 0);
    }
  }
}

// The check reads the weights by the CPU's loader: other ones on the device do not pass.
TEST_F(CheckpointStageGpu, OtherWeightsDoNotPass) {
  write(DType::bf16);
  Context cpu({.num_threads = 2}), gpu({.device = gpu_device()});
  const auto experts = std::make_shared<CheckpointExperts>(
      cpu, gpu, CheckpointSource{folder.path(), 4, model_of_the_file(), QuantFormat::none, 6});
  EXPECT_EQ(experts->figures().read_bytes, 6 * 3 * 128 * 64 * 2);
  EXPECT_GT(experts->figures().best_s, 0);
  EXPECT_GT(experts->figures().copy_gbs, 0);
  const Model model = model_of_the_file();
  StageInputs inputs({model, QuantFormat::none, 40, parse_workload("balanced"), 1, 3}, cpu);
  const StageOptions options;
  const auto stages = make_experts_stages({gpu, inputs, options, false, experts});
  ASSERT_EQ(stages.size(), 1u);
  DeviceStage& stage = *stages[0];
  const gpu::OwnedStream stream(gpu_device());
  stage.enqueue(stage.automatic(), stream.get(), 0);
  EXPECT_TRUE(stage.verify(stream.get(), 0).passed);
  const ConstTensorView& down = experts->on_device().down;
  gpu::fill(const_cast<void*>(down.data), 0x3f, size_bytes(down.dtype, down.num_values()), stream.get());
  stage.enqueue(stage.automatic(), stream.get(), 0);
  EXPECT_FALSE(stage.verify(stream.get(), 0).passed);
}

TEST_F(CheckpointStageGpu, RefusesWhatHasNoUseForIt) {
  write(DType::bf16);
  BenchArguments a = arguments();
  a.stages = {"align", "routing"};
  expect_error(ErrorCode::invalid_argument, {"--checkpoint", "--stages align,routing", "experts"}, [&] { resolved(a); });
  a = arguments();
  a.hidden = folder / "rows.npy";
  expect_error(ErrorCode::invalid_argument, {"--hidden", "cpu"}, [&] { resolved(a); });
  a = arguments();
  a.checkpoint_layer = 5;
  expect_error(ErrorCode::invalid_argument, {"layer 5", "4"}, [&] { run_stage_sweep(resolved(a)); });
  a = arguments();
  a.experts = 8;
  expect_error(ErrorCode::invalid_argument, {"--checkpoint", "--experts"}, [&] { resolved(a); });
}

}  // namespace
}  // namespace mixlane::bench
