// Checkpoints into a GPU's memory: the bytes are those that the CPU's loader makes, whatever the form, the sizes and the
// blocks.
#include <numeric>

#include "gpu/memory_budget.hpp"
#include "io/load_weights.hpp"
#include "support/errors.hpp"
#include "support/gpu.hpp"
#include "test_checkpoint.hpp"

namespace mixlane {
namespace {

using namespace test;

constexpr QuantFormat kFormats[] = {QuantFormat::none, QuantFormat::fp8_block, QuantFormat::fp8_channel, QuantFormat::mxfp4,
                                    QuantFormat::mxfp4_fp8};

std::string bytes_of(const ConstTensorView& view) {
  std::string bytes(static_cast<size_t>(view.num_values() * bits(view.dtype) / 8), '\0');
  const gpu::OwnedStream stream(gpu_device());
  gpu::copy(bytes.data(), view.data, static_cast<int64_t>(bytes.size()), stream.get());
  gpu::synchronize(stream.get());
  return bytes;
}

void expect_same(std::string_view what, const ConstTensorView& on_gpu, const ConstTensorView& on_cpu) {
  SCOPED_TRACE(std::string(what));
  ASSERT_EQ(on_gpu.given(), on_cpu.given());
  if (!on_cpu.given()) return;
  EXPECT_EQ(on_gpu.device, gpu_device());
  EXPECT_EQ(on_gpu.dtype, on_cpu.dtype);
  EXPECT_EQ(on_gpu.ndim, on_cpu.ndim);
  EXPECT_EQ(on_gpu.shape, on_cpu.shape);
  EXPECT_EQ(on_gpu.strides, on_cpu.strides);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(on_gpu.data) % 256, 0u);
  EXPECT_TRUE(bytes_of(on_gpu) == bytes_of(on_cpu));  // not printed: they are long
}

void expect_same(const ExpertWeights& on_gpu, const ExpertWeights& on_cpu) {
  EXPECT_EQ(on_gpu.format, on_cpu.format);
  EXPECT_EQ(on_gpu.num_experts, on_cpu.num_experts);
  expect_same("gate_up", on_gpu.gate_up, on_cpu.gate_up);
  expect_same("gate_up_scales", on_gpu.gate_up_scales, on_cpu.gate_up_scales);
  expect_same("gate_up_bias", on_gpu.gate_up_bias, on_cpu.gate_up_bias);
  expect_same("down", on_gpu.down, on_cpu.down);
  expect_same("down_scales", on_gpu.down_scales, on_cpu.down_scales);
  expect_same("down_bias", on_gpu.down_bias, on_cpu.down_bias);
}

void expect_same(const LayerWeights& on_gpu, const LayerWeights& on_cpu) {
  expect_same(on_gpu.weights.experts, on_cpu.weights.experts);
  expect_same(on_gpu.weights.shared, on_cpu.weights.shared);
  expect_same("router", on_gpu.router, on_cpu.router);
  expect_same("router_bias", on_gpu.router_bias, on_cpu.router_bias);
  expect_same("shared_gate", on_gpu.weights.shared_gate, on_cpu.weights.shared_gate);
  expect_same("correction_bias", on_gpu.weights.correction_bias, on_cpu.weights.correction_bias);
  EXPECT_EQ(on_gpu.owned_bytes, on_cpu.owned_bytes);
}

class WeightsGpu : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (!IsSkipped()) device = std::make_unique<Context>(ContextOptions{.device = gpu_device(), .num_threads = 4});
  }
  // In every format, through blocks that hold few rows and through those of real loads.
  void expect_equal_loads(const TempFolder& from, const Model& model, const std::vector<int>& experts, int layer) {
    Checkpoint opened(from.path());
    for (const QuantFormat format : kFormats) {
      const LayerWeights wanted = load_weights(cpu, {model, format, experts}, from.path(), layer);
      for (const Staging& staging : {Staging{4000, 1, 2, 1}, Staging{10'007, 3, 3, 100'000}, Staging{}}) {
        SCOPED_TRACE(fmt::format("{} in blocks of {}", name(format), staging.block_bytes));
        const std::unique_ptr<WeightMemory> memory = open_weight_memory(*device, staging);
        expect_same(load_layer(*memory, {model, format, experts}, opened, layer), wanted);
      }
    }
  }

  TempFolder folder;
  Context cpu{ContextOptions{.device = {}, .num_threads = 3}};
  std::unique_ptr<Context> device;
};

TEST_F(WeightsGpu, SeparateMatricesOfEveryDType) {
  for (const DType dtype : {DType::bf16, DType::f16, DType::f32, DType::fp8_e4m3})
    for (const auto& [hidden, intermediate] :
         std::vector<std::pair<int, int>>{{64, 32}, {320, 160}, {144, 256}, {136, 200}}) {
      SCOPED_TRACE(fmt::format("{}, hidden {}, intermediate {}", name(dtype), hidden, intermediate));
      const TempFolder own;
      const Model model = tiny_model(hidden, intermediate, 5);
      TestCheckpoint checkpoint(static_cast<uint64_t>(hidden));
      add_mixtral(checkpoint, model, "model.layers.2.", dtype);
      checkpoint.write(own.path(), 2);
      expect_equal_loads(own, model, {4, 0, 3}, 2);
    }
}

TEST_F(WeightsGpu, SharedExpertsRouterAndBiases) {
  Model model = tiny_model(256, 160, 6);
  model.correction_bias = true;
  model.num_shared_experts = 1;
  model.shared_intermediate = 128;
  model.shared_gate = true;
  TestCheckpoint checkpoint(4);
  add_qwen(checkpoint, model, "model.layers.3.", DType::fp8_e4m3);
  add_mlp(checkpoint, "model.layers.3.mlp.shared_expert.", kProjections, DType::fp8_e4m3, 256, 128);
  checkpoint.add_plain("model.layers.3.mlp.shared_expert_gate.weight", DType::bf16, 1, 256);
  checkpoint.add_plain("model.layers.3.mlp.gate.e_score_correction_bias", DType::f16, 1, 6, {6});
  checkpoint.write(folder.path(), 3);
  expect_equal_loads(folder, model, {5, 1, 2, 0}, 3);
  expect_equal_loads(folder, model, {}, 3);
}

TEST_F(WeightsGpu, InterleavedMxfp4WithBiases) {
  Model model = tiny_model(192, 96, 5);
  model.router_bias = model.expert_bias = true;
  model.activation.kind = ActivationKind::swiglu_oai;
  TestCheckpoint checkpoint(5);
  add_gpt_oss(checkpoint, model, "model.layers.0.");
  checkpoint.write(folder.path(), 2);
  expect_equal_loads(folder, model, {4, 2}, 0);
}

// More than one round of all blocks, and conversions in more than one batch.
TEST_F(WeightsGpu, MoreThanTheBlocksHold) {
  const Model model = tiny_model(2064, 2032, 7);
  TestCheckpoint checkpoint(6);
  add_qwen(checkpoint, model, "model.layers.0.", DType::bf16);
  checkpoint.write(folder.path(), 2);
  Checkpoint opened(folder.path());
  for (const QuantFormat format : {QuantFormat::none, QuantFormat::fp8_block}) {
    const WeightsRequest request{model, format, {6, 5, 4, 3, 2, 1, 0}};
    const LayerWeights wanted = load_weights(cpu, request, folder.path(), 0);
    expect_same(load_weights(*device, request, folder.path(), 0), wanted);
    const std::unique_ptr<WeightMemory> memory =
        open_weight_memory(*device, {.block_bytes = 1'000'003, .max_threads = 3, .batch_bytes = 20 << 20});
    expect_same(load_layer(*memory, request, opened, 0), wanted);
  }
}

TEST_F(WeightsGpu, AFileThatEndsMeanwhileLeavesNothing) {
  const Model model = tiny_model(512, 256, 8);
  TestCheckpoint checkpoint(14);
  add_qwen(checkpoint, model, "model.layers.0.", DType::bf16);
  const std::filesystem::path shard = folder / "model-1.safetensors";
  for (const QuantFormat format : {QuantFormat::none, QuantFormat::fp8_block}) {
    checkpoint.write(folder.path(), 1, /*with_index=*/false);
    const WeightsRequest request{model, format, {0, 1, 2, 3, 4, 5, 6, 7}};
    Checkpoint opened(folder.path());  // headers are read and fit
    const auto whole = std::filesystem::file_size(shard);
    std::filesystem::resize_file(shard, whole - 1);
    const std::unique_ptr<WeightMemory> memory = open_weight_memory(*device, {.block_bytes = 64 << 10});
    expect_error(ErrorCode::io_error, {shard.string(), "experts.7.down_proj.weight", std::to_string(whole)},
                 [&] { load_layer(*memory, request, opened, 0); });
    // The same memory goes on with a sound file.
    checkpoint.write(folder.path(), 1, /*with_index=*/false);
    Checkpoint sound(folder.path());
    expect_same(load_layer(*memory, request, sound, 0), load_weights(cpu, request, folder.path(), 0));
  }
}

TEST_F(WeightsGpu, AFullDeviceIsRefusedWithTheSizes) {
  const HugeCheckpoint huge(folder.path());
  std::vector<int> experts(8);
  std::iota(experts.begin(), experts.end(), 0);
  const gpu::MemoryBudget before = gpu::memory_budget(0);
  expect_error(ErrorCode::out_of_memory,
               {"8 experts of tiny", fmt::format("{:.2f} GB", static_cast<double>(huge.weight_bytes()) / 1e9), "GB free of"},
               [&] {
                 load_weights(*device, {huge.model, QuantFormat::none, experts}, folder.path(), 0);
               });
  EXPECT_LE(before.free_bytes - gpu::memory_budget(0).free_bytes, 64 << 20);
}

}  // namespace
}  // namespace mixlane
