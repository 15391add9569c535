// Layers of synthetic checkpoints, value by value.
#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "io/load_weights.hpp"
#include "ops/quant/formats.hpp"
#include "support/errors.hpp"
#include "test_checkpoint.hpp"

namespace mixlane {
namespace {

using namespace test;

// --- what a loaded matrix must hold -------------------------------------------------------------------------------------

// Value (row, col) of expert e, decoded with plain loops.
float decoded(QuantFormat format, const ConstTensorView& values, const ConstTensorView& scales, int64_t e, int64_t row,
              int64_t col) {
  const int64_t rows = values.shape[1], cols = values.shape[2];
  const int64_t at = (e * rows + row) * cols + col;
  switch (format) {
    case QuantFormat::none: return bf16_to_f32(values.as<uint16_t>()[at]);
    case QuantFormat::fp8_block: {
      const int64_t block_rows = (rows + 127) / 128, block_cols = (cols + 127) / 128;
      return e4m3_to_f32(values.as<uint8_t>()[at]) *
             scales.as<float>()[(e * block_rows + row / 128) * block_cols + col / 128];
    }
    case QuantFormat::fp8_channel: return e4m3_to_f32(values.as<uint8_t>()[at]) * scales.as<float>()[e * rows + row];
    case QuantFormat::mxfp4:
    case QuantFormat::mxfp4_fp8: {
      const uint8_t pair = values.as<uint8_t>()[at / 2];
      const uint8_t scale = scales.as<uint8_t>()[(e * rows + row) * ((cols + 31) / 32) + col / 32];
      return e2m1_to_f32(static_cast<uint8_t>(at % 2 == 0 ? pair & 15 : pair >> 4)) * e8m0_to_f32(scale);
    }
  }
  return NAN;
}

// `m` after a trip through `format`.
Matrix rounded(Matrix m, QuantFormat format) {
  if (format == QuantFormat::none) {
    for (float& value : m.values) value = bf16_to_f32(f32_to_bf16(value));
    return m;
  }
  const bool is_mx = has_mx_weights(format);
  const int64_t tile_rows = format == QuantFormat::fp8_block ? 128 : 1;
  const int64_t tile_cols = is_mx ? 32 : format == QuantFormat::fp8_block ? 128 : m.cols;
  std::map<std::pair<int64_t, int64_t>, float> largest;
  for (int64_t r = 0; r < m.rows; ++r)
    for (int64_t c = 0; c < m.cols; ++c) {
      float& tile = largest[{r / tile_rows, c / tile_cols}];
      tile = std::max(tile, std::fabs(m.at(r, c)));
    }
  for (int64_t r = 0; r < m.rows; ++r)
    for (int64_t c = 0; c < m.cols; ++c) {
      const float amax = largest[{r / tile_rows, c / tile_cols}];
      float& value = m.values[static_cast<size_t>(r * m.cols + c)];
      if (is_mx) {
        const float scale = std::ldexp(1.0f, amax == 0 ? -127 : std::ilogb(amax) - 2);
        value = e2m1_to_f32(f32_to_e2m1(value / scale)) * scale;
      } else {
        const float scale = std::max(amax, 1e-10f) / 448.0f;
        value = e4m3_to_f32(f32_to_e4m3(value / scale)) * scale;
      }
    }
  return m;
}

enum class Expect { exact, rounded };  // the file's own values, or those after a conversion

void expect_matrix(const ConstTensorView& values, const ConstTensorView& scales, QuantFormat format, int64_t e,
                   const Matrix& truth, Expect expect) {
  ASSERT_EQ(values.shape[1], truth.rows);
  ASSERT_EQ(values.shape[2], truth.cols);
  const Matrix wanted = expect == Expect::exact ? truth : rounded(truth, format);
  int failures = 0;
  for (int64_t r = 0; r < truth.rows && failures < 3; ++r)
    for (int64_t c = 0; c < truth.cols && failures < 3; ++c) {
      const float got = decoded(format, values, scales, e, r, c);
      if (got == wanted.at(r, c)) continue;
      ADD_FAILURE() << "expert " << e << " row " << r << " col " << c << ": " << got << ", expected " << wanted.at(r, c);
      ++failures;
    }
}

void expect_experts(const ExpertWeights& weights, QuantFormat format, const Model& model, const std::vector<Mlp>& truth,
                    Expect gate_up, Expect down) {
  EXPECT_EQ(weights.format, format);
  ASSERT_EQ(weights.num_experts, static_cast<int>(truth.size()));
  EXPECT_EQ(weights.hidden, model.hidden);
  ASSERT_EQ(weights.gate_up.ndim, 3);
  ASSERT_EQ(weights.gate_up.shape[0], weights.num_experts);
  for (int64_t e = 0; e < weights.num_experts; ++e) {
    const Mlp& mlp = truth[static_cast<size_t>(e)];
    SCOPED_TRACE("gate_up, then down");
    expect_matrix(weights.gate_up, weights.gate_up_scales, format, e, stack(mlp.gate, mlp.up), gate_up);
    expect_matrix(weights.down, weights.down_scales, format, e, mlp.down, down);
  }
}

void expect_experts(const ExpertWeights& weights, QuantFormat format, const Model& model, const std::vector<Mlp>& truth,
                    Expect expect) {
  expect_experts(weights, format, model, truth, expect, expect);
}

void expect_bf16(const ConstTensorView& view, const Matrix& truth) {
  ASSERT_EQ(view.dtype, DType::bf16);
  ASSERT_EQ(view.num_values(), static_cast<int64_t>(truth.values.size()));
  for (size_t i = 0; i < truth.values.size(); ++i) ASSERT_EQ(bf16_to_f32(view.as<uint16_t>()[i]), truth.values[i]) << i;
}

void expect_f32(const ConstTensorView& view, const std::vector<float>& truth) {
  ASSERT_EQ(view.dtype, DType::f32);
  ASSERT_EQ(view.num_values(), static_cast<int64_t>(truth.size()));
  for (size_t i = 0; i < truth.size(); ++i) ASSERT_EQ(view.as<float>()[i], truth[i]) << i;
}

std::vector<int> all_experts(const Model& model) {
  std::vector<int> experts(static_cast<size_t>(model.routing.num_experts));
  for (size_t e = 0; e < experts.size(); ++e) experts[e] = static_cast<int>(e);
  return experts;
}

std::vector<Mlp> chosen(const std::vector<Mlp>& all, const std::vector<int>& experts) {
  std::vector<Mlp> result;
  for (const int e : experts) result.push_back(all[static_cast<size_t>(e)]);
  return result;
}

class CheckpointTest : public ::testing::Test {
 protected:
  LayerWeights load(const Model& model, QuantFormat format, const std::vector<int>& experts, int layer = 0) {
    return load_weights(context, {model, format, experts}, folder.path(), layer);
  }
  void expect_load_error(ErrorCode code, const std::vector<std::string>& mentions, const Model& model, int layer = 0) {
    expect_error(code, mentions, [&] { load(model, QuantFormat::none, all_experts(model), layer); });
  }
  TempFolder folder;
  Context context{ContextOptions{.device = {}, .num_threads = 3}};
};

// --- families ------------------------------------------------------------------------------------------------------------

TEST_F(CheckpointTest, MixtralInShards) {
  const Model model = tiny_model(64, 32, 5);
  TestCheckpoint checkpoint(1);
  const TestLayer truth = add_mixtral(checkpoint, model, "model.layers.0.", DType::bf16);
  const TestLayer second = add_mixtral(checkpoint, model, "model.layers.11.", DType::bf16);
  checkpoint.write(folder.path(), 2);
  const LayerWeights loaded = load(model, QuantFormat::none, all_experts(model));
  expect_bf16(loaded.router, truth.router);
  expect_experts(loaded.weights.experts, QuantFormat::none, model, truth.experts, Expect::exact);
  EXPECT_EQ(loaded.weights.shared.num_experts, 0);
  EXPECT_FALSE(loaded.weights.correction_bias.given());
  EXPECT_EQ(loaded.owned_bytes, 2 * (5 * 3 * 64 * 32 + 5 * 64));
  expect_experts(load(model, QuantFormat::none, {4, 0}, 11).weights.experts, QuantFormat::none, model,
                 chosen(second.experts, {4, 0}), Expect::exact);
}

TEST_F(CheckpointTest, OtherDTypesPrefixesAndNoIndex) {
  int seed = 10;
  for (const std::string prefix : {"", "model.", "language_model.model.", "model.language_model."})
    for (const DType dtype : {DType::f32, DType::f16}) {
      SCOPED_TRACE(prefix + std::string(name(dtype)));
      const TempFolder own;
      const Model model = tiny_model(48, 24, 3);
      TestCheckpoint checkpoint(static_cast<uint64_t>(seed++));
      const TestLayer truth = add_qwen(checkpoint, model, prefix + "layers.7.", dtype);
      checkpoint.write(own.path(), 3, /*with_index=*/false);
      const LayerWeights loaded = load_weights(context, {model, QuantFormat::none, {2, 1}}, own.path(), 7);
      expect_experts(loaded.weights.experts, QuantFormat::none, model, chosen(truth.experts, {2, 1}), Expect::rounded);
    }
}

TEST_F(CheckpointTest, QwenConvertsToEveryFormat) {
  for (const auto& [hidden, intermediate] : std::vector<std::pair<int, int>>{{160, 96}, {256, 128}, {136, 200}}) {
    const TempFolder own;
    const Model model = tiny_model(hidden, intermediate, 4);
    TestCheckpoint checkpoint(2);
    const TestLayer truth = add_qwen(checkpoint, model, "model.layers.0.", DType::bf16);
    checkpoint.write(own.path(), 2);
    for (const QuantFormat format : {QuantFormat::fp8_block, QuantFormat::fp8_channel, QuantFormat::mxfp4}) {
      SCOPED_TRACE(std::string(name(format)));
      const LayerWeights loaded = load_weights(context, {model, format, {3, 0, 2}}, own.path(), 0);
      expect_experts(loaded.weights.experts, format, model, chosen(truth.experts, {3, 0, 2}), Expect::rounded);
    }
  }
}

TEST_F(CheckpointTest, QwenNextHasAGatedSharedExpert) {
  Model model = tiny_model(64, 32, 4);
  model.num_shared_experts = 1;
  model.shared_intermediate = 48;
  model.shared_gate = true;
  TestCheckpoint checkpoint(3);
  add_qwen(checkpoint, model, "model.layers.0.", DType::bf16);
  const Mlp shared = add_mlp(checkpoint, "model.layers.0.mlp.shared_expert.", kProjections, DType::bf16, 64, 48);
  const Matrix gate = checkpoint.add_plain("model.layers.0.mlp.shared_expert_gate.weight", DType::bf16, 1, 64);
  checkpoint.write(folder.path(), 2);
  const LayerWeights loaded = load(model, QuantFormat::none, {1});
  expect_experts(loaded.weights.shared, QuantFormat::none, model, {shared}, Expect::exact);
  EXPECT_EQ(loaded.weights.shared.intermediate, 48);
  expect_bf16(loaded.weights.shared_gate, gate);
  EXPECT_EQ(loaded.weights.shared_gate.ndim, 1);
}

TEST_F(CheckpointTest, DeepSeekFp8) {
  // 128-row blocks of gate and up stay blocks of the two together (256), or do not (160).
  for (const int intermediate : {256, 160}) {
    SCOPED_TRACE(intermediate);
    const TempFolder own;
    Model model = tiny_model(320, intermediate, 4);
    model.correction_bias = true;
    model.num_shared_experts = 2;
    model.shared_intermediate = 2 * intermediate;
    TestCheckpoint checkpoint(4);
    const TestLayer truth = add_qwen(checkpoint, model, "model.layers.3.", DType::fp8_e4m3);
    const Mlp shared =
        add_mlp(checkpoint, "model.layers.3.mlp.shared_experts.", kProjections, DType::fp8_e4m3, 320, 2 * intermediate);
    const Matrix bias = checkpoint.add_plain("model.layers.3.mlp.gate.e_score_correction_bias", DType::f32, 1, 4, {4});
    checkpoint.write(own.path(), 2);

    for (const QuantFormat format :
         {QuantFormat::fp8_block, QuantFormat::none, QuantFormat::fp8_channel, QuantFormat::mxfp4}) {
      SCOPED_TRACE(std::string(name(format)));
      const LayerWeights loaded = load_weights(context, {model, format, {0, 3}}, own.path(), 3);
      const bool is_block = format == QuantFormat::fp8_block;
      const Expect gate_up = is_block && intermediate == 256 ? Expect::exact : Expect::rounded;
      const Expect down = is_block ? Expect::exact : Expect::rounded;
      expect_experts(loaded.weights.experts, format, model, chosen(truth.experts, {0, 3}), gate_up, down);
      expect_experts(loaded.weights.shared, format, model, {shared}, gate_up, down);
      expect_f32(loaded.weights.correction_bias, bias.values);
    }
  }
}

TEST_F(CheckpointTest, GptOss) {
  Model model = tiny_model(64, 96, 5);
  model.router_bias = model.expert_bias = true;
  model.activation.kind = ActivationKind::swiglu_oai;
  TestCheckpoint checkpoint(5);
  const OssLayer truth = add_gpt_oss(checkpoint, model, "model.layers.0.");
  checkpoint.write(folder.path(), 2);
  for (const QuantFormat format :
       {QuantFormat::mxfp4, QuantFormat::mxfp4_fp8, QuantFormat::none, QuantFormat::fp8_block, QuantFormat::fp8_channel}) {
    SCOPED_TRACE(std::string(name(format)));
    const LayerWeights loaded = load(model, format, {4, 2});
    // e2m1 times a power of two is a bf16, so that conversion is exact too.
    expect_experts(loaded.weights.experts, format, model, chosen(truth.experts, {4, 2}),
                   has_mx_weights(format) || format == QuantFormat::none ? Expect::exact : Expect::rounded);
    expect_bf16(loaded.router, truth.router);
    expect_f32(loaded.router_bias, truth.router_bias.values);
    std::vector<float> gate_up = truth.gate_up_bias[4], down;
    gate_up.insert(gate_up.end(), truth.gate_up_bias[2].begin(), truth.gate_up_bias[2].end());
    for (const int64_t e : {4, 2})
      for (int64_t c = 0; c < 64; ++c) down.push_back(truth.down_bias.at(e, c));
    expect_f32(loaded.weights.experts.gate_up_bias, gate_up);
    expect_f32(loaded.weights.experts.down_bias, down);
  }
}

// --- ranks
// -----------------------------------------------------------------------------------------------------------------

// Host memory that remembers what was read for it.
class WatchedMemory final : public WeightMemory {
 public:
  explicit WatchedMemory(Context& context) : memory_(open_weight_memory(context)) {}
  void require(int64_t bytes, std::string_view what) const override { memory_->require(bytes, what); }
  OwnedTensor make(std::string_view what, DType dtype, std::initializer_list<int64_t> shape) override {
    return memory_->make(what, dtype, shape);
  }
  int num_lanes() const override { return 1; }
  void fetch(const std::vector<Transfer>& transfers, int lane) override {
    for (const Transfer& transfer : transfers) runs.push_back(transfer.from);
    memory_->fetch(transfers, lane);
  }
  void finish() override { memory_->finish(); }
  int64_t batch_bytes() const override { return 1; }  // a matrix at a time
  Context& context(int lane) override { return memory_->context(lane); }
  Stream stream(int lane) const override { return memory_->stream(lane); }

  std::vector<RowRun> runs;

 private:
  std::unique_ptr<WeightMemory> memory_;
};

TEST_F(CheckpointTest, ARankReadsOnlyItsOwnExperts) {
  const Model model = tiny_model(64, 32, 6);
  TestCheckpoint checkpoint(6);
  add_qwen(checkpoint, model, "model.layers.0.", DType::bf16);
  checkpoint.write(folder.path(), 2);
  Checkpoint opened(folder.path());
  std::set<std::string> expected;
  for (const std::string e : {"1", "4"})
    for (const std::string& matrix : kProjections)
      expected.insert("model.layers.0.mlp.experts." + e + "." + matrix + ".weight");
  for (const bool experts_only : {true, false}) {
    WatchedMemory memory(context);
    const LayerWeights loaded = load_layer(memory, {model, QuantFormat::none, {1, 4}, experts_only}, opened, 0);
    EXPECT_EQ(loaded.router.given(), !experts_only);
    if (!experts_only) expected.insert("model.layers.0.mlp.gate.weight");
    std::set<std::string> read;
    for (const RowRun& run : memory.runs) read.insert(*run.tensor.name);
    EXPECT_EQ(read, expected);
  }
}

TEST_F(CheckpointTest, ARankReadsOnlyItsSliceOfStackedExperts) {
  Model model = tiny_model(64, 32, 6);
  model.router_bias = model.expert_bias = true;
  TestCheckpoint checkpoint(7);
  add_gpt_oss(checkpoint, model, "model.layers.0.");
  checkpoint.write(folder.path(), 1);
  Checkpoint opened(folder.path());
  for (const QuantFormat format : {QuantFormat::mxfp4, QuantFormat::fp8_block}) {
    WatchedMemory memory(context);
    load_layer(memory, {model, format, {1, 4}}, opened, 0);
    std::set<std::string> stacked;
    for (const RowRun& run : memory.runs) {
      const std::string& name = *run.tensor.name;
      if (name.find("experts") == std::string::npos) continue;
      stacked.insert(name);
      const auto expert_bytes = static_cast<int64_t>(checkpoint.find(name).bytes.size()) / 6;
      const int64_t first = run.offset / expert_bytes, last = (run.offset + run.bytes() - 1) / expert_bytes;
      EXPECT_EQ(first, last) << name;
      EXPECT_TRUE(first == 1 || first == 4) << name << " expert " << first;
    }
    EXPECT_EQ(stacked.size(), 6u);
  }
}

TEST_F(CheckpointTest, ThreadsDoNotChangeBitsAndARankMayOwnNothing) {
  const Model model = tiny_model(64, 160, 7);
  TestCheckpoint checkpoint(8);
  add_qwen(checkpoint, model, "model.layers.0.", DType::bf16);
  checkpoint.write(folder.path(), 2);
  for (const QuantFormat format : {QuantFormat::none, QuantFormat::fp8_block}) {
    Context one{ContextOptions{.device = {}, .num_threads = 1}};
    const LayerWeights a = load(model, format, all_experts(model));
    const LayerWeights b = load_weights(one, {model, format, all_experts(model)}, folder.path(), 0);
    const ConstTensorView& x = a.weights.experts.gate_up;
    const ConstTensorView& y = b.weights.experts.gate_up;
    EXPECT_EQ(std::memcmp(x.data, y.data, static_cast<size_t>(size_bytes(x.dtype, x.num_values()))), 0);
    const LayerWeights none = load(model, format, {});
    EXPECT_EQ(none.weights.experts.num_experts, 0);
    EXPECT_EQ(none.weights.experts.gate_up.shape[0], 0);
    EXPECT_TRUE(none.router.given());
  }
}

// --- mistakes
// --------------------------------------------------------------------------------------------------------------

TEST_F(CheckpointTest, NamesWhatIsMissing) {
  const Model model = tiny_model(64, 32, 3);
  TestCheckpoint checkpoint(9);
  for (const std::string layer : {"3", "4", "5", "8"})
    add_qwen(checkpoint, model, "model.layers." + layer + ".", DType::bf16);
  checkpoint.write(folder.path(), 2);
  expect_load_error(ErrorCode::invalid_argument, {"layer 0", "3-5, 8"}, model, 0);
  expect_load_error(ErrorCode::invalid_argument, {"layer -1", "3-5, 8"}, model, -1);
  expect_error(ErrorCode::invalid_argument, {"expert 3", "0..2"}, [&] { load(model, QuantFormat::none, {0, 3}, 3); });
  expect_error(ErrorCode::invalid_argument, {"expert -1"}, [&] { load(model, QuantFormat::none, {-1}, 3); });

  Model incomplete = model;
  incomplete.missing = {"routing.scale"};
  expect_load_error(ErrorCode::invalid_argument, {"routing.scale"}, incomplete, 3);

  const std::string missing = "model.layers.4.mlp.experts.1.up_proj.weight";
  checkpoint.remove(missing);
  checkpoint.write(folder.path(), 2);
  expect_load_error(ErrorCode::bad_format, {folder.path().string(), missing}, model, 4);
  EXPECT_NO_THROW(load(model, QuantFormat::none, {0, 2}, 4)) << "other ranks do not need it";

  std::filesystem::remove(folder / "model-2.safetensors");
  expect_load_error(ErrorCode::io_error, {"model-2.safetensors"}, model, 3);
}

TEST_F(CheckpointTest, NamesWrongShapesAndTypes) {
  const Model model = tiny_model(64, 32, 3);
  TestCheckpoint checkpoint(10);
  add_qwen(checkpoint, model, "model.layers.0.", DType::bf16);
  checkpoint.write(folder.path(), 2);
  expect_load_error(ErrorCode::invalid_argument, {"mlp.experts.0.gate_proj.weight", "[32, 64]", "[32, 72]"},
                    tiny_model(72, 32, 3));
  expect_load_error(ErrorCode::invalid_argument, {"mlp.experts.0.gate_proj.weight", "[32, 64]", "[40, 64]"},
                    tiny_model(64, 40, 3));
  expect_error(ErrorCode::invalid_argument, {"mlp.gate.weight", "BF16 [3, 64]", "[2, 64]"},
               [&] { load(tiny_model(64, 32, 2), QuantFormat::none, {0}); });

  StoredTensor& tensor = checkpoint.find("model.layers.0.mlp.experts.1.down_proj.weight");
  tensor.dtype = DType::i32;
  tensor.shape = {64, 16};
  checkpoint.write(folder.path(), 2);
  expect_load_error(ErrorCode::invalid_argument, {"experts.1.down_proj.weight", "I32 [64, 16]", "[64, 32]"}, model);
  tensor.shape = {64, 32};
  tensor.bytes.resize(64 * 32 * 4);
  checkpoint.write(folder.path(), 2);
  expect_load_error(ErrorCode::unsupported, {"experts.1.down_proj.weight", "I32", "BF16", "F8_E4M3"}, model);
  tensor.dtype = DType::fp8_e4m3;
  tensor.bytes.resize(64 * 32);
  checkpoint.write(folder.path(), 2);
  expect_load_error(ErrorCode::bad_format, {"experts.1.down_proj.weight_scale_inv"}, model);
  checkpoint.add("model.layers.0.mlp.experts.1.down_proj.weight_scale_inv", DType::f32, {2, 1}, std::string(8, '\0'));
  checkpoint.write(folder.path(), 2);
  expect_load_error(ErrorCode::invalid_argument, {"experts.1.down_proj.weight_scale_inv", "[2, 1]", "[1, 1]"}, model);
}

TEST_F(CheckpointTest, ModelAndCheckpointMustAgree) {
  Model plain = tiny_model(64, 32, 3);
  TestCheckpoint checkpoint(11);
  add_qwen(checkpoint, plain, "model.layers.0.", DType::bf16);
  checkpoint.write(folder.path(), 1);
  Model model = plain;
  model.correction_bias = true;
  expect_load_error(ErrorCode::invalid_argument, {"no 'model.layers.0.mlp.gate.e_score_correction_bias'", "correction_bias"},
                    model);
  model = plain;
  model.router_bias = true;
  expect_load_error(ErrorCode::invalid_argument, {"router_bias = true"}, model);
  model = plain;
  model.expert_bias = true;
  expect_load_error(ErrorCode::invalid_argument, {"expert_bias = true"}, model);
  model = plain;
  model.num_shared_experts = 1;
  model.shared_intermediate = 32;
  expect_load_error(ErrorCode::invalid_argument, {"num_shared_experts > 0 = true"}, model);

  checkpoint.add_plain("model.layers.0.mlp.gate.e_score_correction_bias", DType::f32, 1, 3, {3});
  checkpoint.write(folder.path(), 1);
  expect_load_error(ErrorCode::invalid_argument, {"it has 'model.layers.0.mlp.gate.e_score_correction_bias'", "false"},
                    plain);
  Model relu = tiny_model(64, 32, 3);
  relu.correction_bias = true;
  relu.activation.kind = ActivationKind::relu2;
  const LayerWeights ungated = load(relu, QuantFormat::none, {0});
  EXPECT_EQ(ungated.weights.experts.gate_up.shape[1], 32) << "no gate: the up rows alone";
}

TEST_F(CheckpointTest, RefusesBrokenFolders) {
  const Model model = tiny_model(64, 32, 3);
  expect_error(ErrorCode::io_error, {"nowhere"}, [&] {
    load_weights(context, {model, QuantFormat::none, {0}}, folder / "nowhere", 0);
  });
  expect_load_error(ErrorCode::io_error, {folder.path().string(), "no *.safetensors"}, model);

  TestCheckpoint dense(12);
  dense.add_plain("model.layers.0.mlp.gate_proj.weight", DType::bf16, 8, 8);
  dense.write(folder.path(), 1);
  expect_load_error(ErrorCode::invalid_argument, {"known family", "Mixtral", "gpt-oss"}, model);

  TestCheckpoint checkpoint(13);
  add_qwen(checkpoint, model, "model.layers.0.", DType::bf16);
  checkpoint.write(folder.path(), 2);
  EXPECT_NO_THROW(load(model, QuantFormat::none, {0, 1, 2}));
  const std::string shard = read_file(folder / "model-2.safetensors");
  for (const size_t length : {size_t{0}, size_t{5}, size_t{200}, shard.size() - 1}) {
    write_file(folder / "model-2.safetensors", shard.substr(0, length));
    expect_load_error(ErrorCode::bad_format, {"model-2.safetensors"}, model);
  }
  // The index says so, the shard does not.
  std::filesystem::copy_file(folder / "model-1.safetensors", folder / "model-2.safetensors",
                             std::filesystem::copy_options::overwrite_existing);
  expect_load_error(ErrorCode::bad_format, {"model-2.safetensors", "index.json says so"}, model);
  // Without an index, a tensor that is there twice.
  std::filesystem::remove(folder / "model.safetensors.index.json");
  expect_load_error(ErrorCode::bad_format, {"both hold tensor", "model-1.safetensors", "model-2.safetensors"}, model);
}

TEST_F(CheckpointTest, NamesTheTensorAtWhichAFileEndsMeanwhile) {
  const Model model = tiny_model(64, 32, 3);
  TestCheckpoint checkpoint(14);
  add_qwen(checkpoint, model, "model.layers.0.", DType::bf16);
  checkpoint.write(folder.path(), 1, /*with_index=*/false);
  for (const QuantFormat format : {QuantFormat::none, QuantFormat::fp8_block}) {
    Checkpoint opened(folder.path());  // headers are read and fit
    const std::filesystem::path shard = folder / "model-1.safetensors";
    const auto whole = std::filesystem::file_size(shard);
    std::filesystem::resize_file(shard, whole - 1);
    const std::unique_ptr<WeightMemory> memory = open_weight_memory(context);
    expect_error(ErrorCode::io_error, {shard.string(), "experts.2.down_proj.weight", std::to_string(whole)}, [&] {
      load_layer(*memory, {model, format, {0, 1, 2}}, opened, 0);
    });
    checkpoint.write(folder.path(), 1, /*with_index=*/false);
  }
}

TEST_F(CheckpointTest, RefusesWhatDoesNotFitBeforeItIsRead) {
  const HugeCheckpoint huge(folder.path());
  expect_error(ErrorCode::out_of_memory, {"8 experts of tiny", std::to_string(huge.weight_bytes()), "free"},
               [&] { load(huge.model, QuantFormat::none, all_experts(huge.model)); });
}

}  // namespace
}  // namespace mixlane
