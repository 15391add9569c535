// The whole layer on rank threads against an independent plain-loop layer, over random shapes and every kind of model.
#include "mixlane/layer.hpp"

#include <gtest/gtest.h>

#include <mutex>

#include "plain_moe.hpp"
#include "support/errors.hpp"
#include "support/random.hpp"
#include "support/rank_threads.hpp"

namespace mixlane {
namespace {

using test::Matrix;
using test::PlainExpert;
using test::PlainMoe;
using test::Rng;

// A layer of the whole group: bf16 weights of all experts, and the same values as doubles.
struct World {
  int hidden = 0, intermediate = 0;
  PlainMoe plain;
  std::vector<uint16_t> gate_up, down, shared_gate_up, shared_down, shared_gate;
  std::vector<float> gate_up_bias, down_bias, correction_bias;

  int64_t inner_rows() const { return plain.activation.gated() ? 2 * intermediate : intermediate; }
};

struct Shape {
  int hidden, intermediate;
  RoutingConfig routing;
  Activation activation = {};
  bool shared = false, shared_gate = false, bias = false, correction_bias = false;
};

Matrix as_doubles(const uint16_t* bits, int64_t rows, int64_t cols) {
  Matrix matrix{rows, cols, std::vector<double>(rows * cols)};
  for (int64_t i = 0; i < rows * cols; ++i) matrix.values[i] = bf16_to_f32(bits[i]);
  return matrix;
}

std::vector<double> as_doubles(const std::vector<float>& values, int64_t begin, int64_t count) {
  return {values.begin() + begin, values.begin() + begin + count};
}

World make_world(const Shape& shape, Rng& rng) {
  World w;
  w.hidden = shape.hidden;
  w.intermediate = shape.intermediate;
  w.plain.routing = shape.routing;
  w.plain.activation = shape.activation;
  const int64_t experts = shape.routing.num_experts, h = shape.hidden, inner = w.intermediate, rows = w.inner_rows();
  const float up_scale = 1 / std::sqrt(static_cast<float>(h)), down_scale = 1 / std::sqrt(static_cast<float>(inner));
  w.gate_up = test::normal_bf16(rng, experts * rows * h, up_scale);
  w.down = test::normal_bf16(rng, experts * h * inner, down_scale);
  if (shape.bias) {
    w.gate_up_bias = test::normal_f32(rng, experts * rows, 0.2f);
    w.down_bias = test::normal_f32(rng, experts * h, 0.2f);
  }
  for (int64_t e = 0; e < experts; ++e) {
    PlainExpert expert{as_doubles(&w.gate_up[e * rows * h], rows, h), as_doubles(&w.down[e * h * inner], h, inner), {}, {}};
    if (shape.bias) {
      expert.gate_up_bias = as_doubles(w.gate_up_bias, e * rows, rows);
      expert.down_bias = as_doubles(w.down_bias, e * h, h);
    }
    w.plain.experts.push_back(std::move(expert));
  }
  if (shape.shared) {
    w.shared_gate_up = test::normal_bf16(rng, rows * h, up_scale);
    w.shared_down = test::normal_bf16(rng, h * inner, down_scale);
    w.plain.shared.push_back(
        {as_doubles(w.shared_gate_up.data(), rows, h), as_doubles(w.shared_down.data(), h, inner), {}, {}});
  }
  if (shape.shared_gate) {
    w.shared_gate = test::normal_bf16(rng, h, up_scale);
    w.plain.shared_gate = as_doubles(w.shared_gate.data(), 1, h).values;
  }
  if (shape.correction_bias) {
    w.correction_bias = test::normal_f32(rng, experts + shape.routing.num_zero_experts, 0.1f);
    w.plain.correction_bias = as_doubles(w.correction_bias, 0, static_cast<int64_t>(w.correction_bias.size()));
  }
  return w;
}

// Physical experts `first .. first + count` of the world as one rank's weights.
MoeLayerWeights rank_weights(const World& w, int first, int count) {
  const int64_t h = w.hidden, inner = w.intermediate, rows = w.inner_rows();
  MoeLayerWeights weights;
  weights.experts = {.num_experts = count,
                     .hidden = w.hidden,
                     .intermediate = w.intermediate,
                     .gate_up = ConstTensorView(&w.gate_up[first * rows * h], DType::bf16, {count, rows, h}),
                     .down = ConstTensorView(&w.down[first * h * inner], DType::bf16, {count, h, inner})};
  if (!w.gate_up_bias.empty()) {
    weights.experts.gate_up_bias = ConstTensorView(&w.gate_up_bias[first * rows], DType::f32, {count, rows});
    weights.experts.down_bias = ConstTensorView(&w.down_bias[first * h], DType::f32, {count, h});
  }
  if (!w.shared_gate_up.empty())
    weights.shared = {.num_experts = 1,
                      .hidden = w.hidden,
                      .intermediate = w.intermediate,
                      .gate_up = ConstTensorView(w.shared_gate_up.data(), DType::bf16, {1, rows, h}),
                      .down = ConstTensorView(w.shared_down.data(), DType::bf16, {1, h, inner})};
  if (!w.shared_gate.empty()) weights.shared_gate = ConstTensorView(w.shared_gate.data(), DType::bf16, {h});
  if (!w.correction_bias.empty())
    weights.correction_bias =
        ConstTensorView(w.correction_bias.data(), DType::f32, {static_cast<int64_t>(w.correction_bias.size())});
  return weights;
}

struct Batch {
  std::vector<uint16_t> hidden;  // [total, H]
  std::vector<float> logits;     // [total, E + Z]
  int64_t total = 0;
};

Batch make_batch(const World& w, int64_t total, Rng& rng) {
  const int64_t columns = w.plain.routing.num_experts + w.plain.routing.num_zero_experts;
  return {test::normal_bf16(rng, total * w.hidden), test::normal_f32(rng, total * columns), total};
}

struct RunOptions {
  CombineWire combine_wire = CombineWire::f32;
  std::string experts_variant = "auto";
  int repeats = 1;
  bool batch_invariant = false;
};

// Runs the batch on num_ranks rank threads; rank r gets tokens [split[r], split[r + 1]). Returns the bf16 output bits.
std::vector<uint16_t> run_layer(const World& w, const Batch& batch, const std::vector<int64_t>& split,
                                const RunOptions& options) {
  const int num_ranks = static_cast<int>(split.size()) - 1;
  const int64_t columns = w.plain.routing.num_experts + w.plain.routing.num_zero_experts;
  std::vector<uint16_t> output(batch.total * w.hidden, 0x7fc0);
  test::run_ranks(num_ranks, [&](std::shared_ptr<Communicator> comm) {
    const int rank = comm->rank();
    Context context({.num_threads = 1});
    const int experts = w.plain.routing.num_experts, base = experts / num_ranks, extra = experts % num_ranks;
    const int first = rank * base + std::min(rank, extra), count = base + (rank < extra ? 1 : 0);
    MoeLayerConfig config{.routing = w.plain.routing, .activation = w.plain.activation};
    config.dispatch.max_tokens = static_cast<int>(batch.total);
    config.dispatch.combine_wire = options.combine_wire;
    config.experts_variant = options.experts_variant;
    config.batch_invariant = options.batch_invariant;
    MoeLayer layer(context, comm, config, rank_weights(w, first, count));
    const int64_t begin = split[rank], num_tokens = split[rank + 1] - begin;
    for (int repeat = 0; repeat < options.repeats; ++repeat)
      layer.forward({.hidden = ConstTensorView(&batch.hidden[begin * w.hidden], DType::bf16, {num_tokens, w.hidden}),
                     .logits = ConstTensorView(&batch.logits[begin * columns], DType::f32, {num_tokens, columns}),
                     .output = TensorView(&output[begin * w.hidden], DType::bf16, {num_tokens, w.hidden})});
  });
  return output;
}

std::vector<int64_t> even_split(int64_t total, int num_ranks) {
  std::vector<int64_t> split;
  for (int r = 0; r <= num_ranks; ++r) split.push_back(total * r / num_ranks);
  return split;
}

// Frobenius norm of (output - plain layer) / of the plain layer.
double relative_error(const World& w, const Batch& batch, const std::vector<uint16_t>& output) {
  const int64_t columns = w.plain.routing.num_experts + w.plain.routing.num_zero_experts;
  double difference = 0, norm = 0;
  for (int64_t t = 0; t < batch.total; ++t) {
    std::vector<double> x(w.hidden), logits(columns);
    for (int i = 0; i < w.hidden; ++i) x[i] = bf16_to_f32(batch.hidden[t * w.hidden + i]);
    for (int64_t e = 0; e < columns; ++e) logits[e] = batch.logits[t * columns + e];
    const std::vector<double> expected = test::plain_token(w.plain, x, logits);
    for (int i = 0; i < w.hidden; ++i) {
      const double got = bf16_to_f32(output[t * w.hidden + i]);
      difference += (got - expected[i]) * (got - expected[i]);
      norm += expected[i] * expected[i];
    }
  }
  return std::sqrt(difference / norm);
}

std::vector<std::pair<std::string, Shape>> model_kinds() {
  return {
      {"Mixtral", {64, 96, {.num_experts = 8, .num_topk = 2, .scoring = Scoring::topk_softmax}}},
      {"Qwen3", {96, 48, {.num_experts = 13, .num_topk = 4, .renormalize = true}}},
      {"Qwen3Next", {64, 32, {.num_experts = 20, .num_topk = 5, .renormalize = true}, {}, true, true}},
      {"DeepSeekV2",
       {64,
        48,
        {.num_experts = 16,
         .num_topk = 3,
         .scale = 16.0f,
         .num_groups = 4,
         .topk_groups = 2,
         .group_score = GroupScore::max},
        {},
        true}},
      {"DeepSeekV3",
       {80,
        64,
        {.num_experts = 16,
         .num_topk = 4,
         .scoring = Scoring::sigmoid,
         .renormalize = true,
         .scale = 2.5f,
         .num_groups = 4,
         .topk_groups = 2},
        {},
        true,
        false,
        false,
        true}},
      {"DeepSeekV4",
       {64,
        48,
        {.num_experts = 12, .num_topk = 3, .scoring = Scoring::sqrt_softplus, .renormalize = true, .scale = 1.5f},
        {.kind = ActivationKind::swiglu, .limit = 1.0f},
        true,
        false,
        false,
        true}},
      {"GptOss",
       {48,
        48,
        {.num_experts = 8, .num_topk = 4, .scoring = Scoring::topk_softmax},
        {.kind = ActivationKind::swiglu_oai, .limit = 1.5f},
        false,
        false,
        true}},
      {"Llama4",
       {64, 32, {.num_experts = 6, .num_topk = 1, .scoring = Scoring::sigmoid, .weight_on_input = true}, {}, true}},
      {"Grok", {64, 80, {.num_experts = 8, .num_topk = 2, .softcap = 30.0f}, {.kind = ActivationKind::geglu_tanh}}},
      {"LongCat",
       {64, 32, {.num_experts = 10, .num_zero_experts = 5, .num_topk = 6, .scale = 6.0f}, {}, false, false, false, true}},
      {"Nemotron",
       {64,
        64,
        {.num_experts = 24, .num_topk = 9, .scoring = Scoring::sigmoid, .renormalize = true},
        {.kind = ActivationKind::relu2},
        true}},
  };
}

class LayerOfModel : public testing::TestWithParam<int> {};

TEST_P(LayerOfModel, EqualsThePlainLayerOnAnyNumberOfRanks) {
  const auto [name, shape] = model_kinds()[GetParam()];
  Rng rng(100 + GetParam());
  const World world = make_world(shape, rng);
  const Batch batch = make_batch(world, 23, rng);
  for (const int num_ranks : {1, 2, 3, 5}) {
    const auto output = run_layer(world, batch, even_split(batch.total, num_ranks), {});
    EXPECT_LE(relative_error(world, batch, output), 4e-3) << name << " on " << num_ranks << " ranks";
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, LayerOfModel, testing::Range(0, 11),
                         [](const auto& param_info) { return model_kinds()[param_info.param].first; });

TEST(Layer, TakesUnequalAndZeroTokens) {
  Rng rng(5);
  const World world = make_world({64, 32, {.num_experts = 9, .num_topk = 3, .renormalize = true}}, rng);
  const Batch batch = make_batch(world, 31, rng);
  for (const auto& split :
       {std::vector<int64_t>{0, 0, 31, 31, 31}, {0, 1, 2, 31, 31}, {0, 30, 31}, {0, 0, 0, 0, 0, 0, 31}}) {
    const auto output = run_layer(world, batch, split, {});
    EXPECT_LE(relative_error(world, batch, output), 4e-3);
  }
}

TEST(Layer, RandomShapes) {
  Rng rng(77);
  const auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng); };
  for (int round = 0; round < 25; ++round) {
    const int experts = pick(1, 30);
    Shape shape{16 * pick(1, 9), 16 * pick(1, 9), {.num_experts = experts, .num_topk = pick(1, std::min(experts, 8))}};
    shape.routing.renormalize = round % 2;
    shape.routing.scoring = static_cast<Scoring>(pick(0, 3));
    shape.activation.kind = static_cast<ActivationKind>(pick(0, 3));
    shape.shared = pick(0, 1);
    shape.bias = pick(0, 1);
    const World world = make_world(shape, rng);
    const Batch batch = make_batch(world, pick(1, 40), rng);
    const int num_ranks = pick(1, 8);
    const auto output = run_layer(world, batch, even_split(batch.total, num_ranks), {.repeats = pick(1, 3)});
    EXPECT_LE(relative_error(world, batch, output), 5e-3)
        << "round " << round << ", " << num_ranks << " ranks, H " << shape.hidden << ", I " << shape.intermediate;
  }
}

TEST(Layer, IsBitwiseEqualFromRunToRun) {
  Rng rng(9);
  const World world = make_world({128, 64, {.num_experts = 16, .num_topk = 4, .renormalize = true}, {}, true}, rng);
  const Batch batch = make_batch(world, 50, rng);
  for (const CombineWire wire : {CombineWire::bf16, CombineWire::f32, CombineWire::f64}) {
    const auto first = run_layer(world, batch, even_split(batch.total, 4), {.combine_wire = wire});
    EXPECT_EQ(first, run_layer(world, batch, even_split(batch.total, 4), {.combine_wire = wire, .repeats = 3}));
  }
}

TEST(Layer, IsBitwiseEqualOnAnyNumberOfRanksOverTheF64Wire) {
  Rng rng(10);
  const World world = make_world({128, 64, {.num_experts = 16, .num_topk = 6, .renormalize = true}, {}, true}, rng);
  const Batch batch = make_batch(world, 64, rng);
  for (const std::string variant : {"experts.reference", "auto"}) {
    const RunOptions options{.combine_wire = CombineWire::f64, .experts_variant = variant};
    const auto on_one = run_layer(world, batch, even_split(batch.total, 1), options);
    for (const int num_ranks : {2, 4, 8})
      EXPECT_EQ(on_one, run_layer(world, batch, even_split(batch.total, num_ranks), options)) << num_ranks << " ranks";
  }
}

TEST(Layer, ATokensBitsAreItsOwnWithBatchInvariant) {
  Rng rng(11);
  const World world = make_world({128, 64, {.num_experts = 4, .num_topk = 2, .renormalize = true}, {}, true}, rng);
  const Batch batch = make_batch(world, 40, rng);
  const auto together = run_layer(world, batch, even_split(batch.total, 2), {.batch_invariant = true});
  for (const int64_t token : {0, 7, 39}) {
    Batch alone;
    alone.total = 1;
    alone.hidden.assign(&batch.hidden[token * 128], &batch.hidden[token * 128] + 128);
    alone.logits.assign(&batch.logits[token * 4], &batch.logits[token * 4] + 4);
    const auto row = run_layer(world, alone, {0, 1, 1}, {.batch_invariant = true});
    EXPECT_TRUE(std::equal(row.begin(), row.end(), &together[token * 128])) << "token " << token;
  }
}

TEST(Layer, RefusesATokenWithNanLogitsAndServesTheOthers) {
  Rng rng(12);
  const World world = make_world({64, 32, {.num_experts = 8, .num_topk = 2}}, rng);
  Batch batch = make_batch(world, 6, rng);
  batch.logits[4 * 8 + 3] = NAN;
  std::vector<uint16_t> output(6 * 64, 0x7fc0);
  test::run_ranks(2, [&](std::shared_ptr<Communicator> comm) {
    Context context({.num_threads = 1});
    MoeLayerConfig config{.routing = world.plain.routing};
    config.dispatch.max_tokens = 3;
    MoeLayer layer(context, comm, config, rank_weights(world, comm->rank() * 4, 4));
    const int64_t begin = comm->rank() * 3;
    const auto forward = [&] {
      layer.forward({.hidden = ConstTensorView(&batch.hidden[begin * 64], DType::bf16, {3, 64}),
                     .logits = ConstTensorView(&batch.logits[begin * 8], DType::f32, {3, 8}),
                     .output = TensorView(&output[begin * 64], DType::bf16, {3, 64})});
    };
    if (comm->rank() == 1) {
      test::expect_error(ErrorCode::nan_logits, {"rank 1", "token 1", "nan_policy"}, forward);
    } else {
      forward();
    }
  });
  for (int i = 0; i < 64; ++i) EXPECT_EQ(output[4 * 64 + i] & 0x7fff, 0) << "the refused token's row is zero";
  batch.logits[4 * 8 + 3] = 0;
  std::copy_n(run_layer(world, batch, {0, 6}, {}).begin() + 4 * 64, 64, output.begin() + 4 * 64);
  EXPECT_LE(relative_error(world, batch, output), 5e-3) << "the other rows are right";
}

TEST(Layer, NamesWhatDoesNotFitItsDispatcher) {
  Rng rng(13);
  const World world = make_world({64, 32, {.num_experts = 8, .num_topk = 2}}, rng);
  test::run_ranks(1, [&](std::shared_ptr<Communicator> comm) {
    Context context({.num_threads = 1});
    MoeLayerConfig config{.routing = world.plain.routing};
    config.dispatch.max_tokens = 4;
    test::expect_error(ErrorCode::invalid_argument, {"number of local experts", "7", "8"},
                       [&] { MoeLayer(context, comm, config, rank_weights(world, 0, 7)); });
    config.align_block = 2000;
    test::expect_error(ErrorCode::invalid_argument, {"align_block", "2000", "1024"},
                       [&] { MoeLayer(context, comm, config, rank_weights(world, 0, 8)); });
    config.align_block = 16;
    MoeLayer layer(context, comm, config, rank_weights(world, 0, 8));
    uint16_t hidden[4 * 48] = {}, out[4 * 64];
    float logits[4 * 8] = {};
    test::expect_error(ErrorCode::invalid_argument, {"hidden", "bf16[4, 48]", "[*, 64]"}, [&] {
      layer.forward({.hidden = ConstTensorView(hidden, DType::bf16, {4, 48}),
                     .logits = ConstTensorView(logits, DType::f32, {4, 8}),
                     .output = TensorView(out, DType::bf16, {4, 64})});
    });
  });
}

TEST(Layer, CallsTheHookAroundEveryStage) {
  Rng rng(14);
  const World world = make_world({64, 32, {.num_experts = 4, .num_topk = 2}, {}, true}, rng);
  const Batch batch = make_batch(world, 2, rng);
  test::run_ranks(1, [&](std::shared_ptr<Communicator> comm) {
    Context context({.num_threads = 1});
    MoeLayerConfig config{.routing = world.plain.routing};
    config.dispatch.max_tokens = 2;
    MoeLayer layer(context, comm, config, rank_weights(world, 0, 4));
    std::string seen;
    layer.set_stage_hook(
        [&](Stage stage, bool begins, Stream) { seen += std::string(begins ? "+" : "-") + std::string(name(stage)); });
    std::vector<uint16_t> out(2 * 64);
    layer.forward({.hidden = ConstTensorView(batch.hidden.data(), DType::bf16, {2, 64}),
                   .logits = ConstTensorView(batch.logits.data(), DType::f32, {2, 4}),
                   .output = TensorView(out.data(), DType::bf16, {2, 64})});
    EXPECT_EQ(
        seen,
        "+routing-routing+dispatch-dispatch+align-align+experts-experts+shared_experts-shared_experts+combine-combine");
    EXPECT_EQ(layer.last_forward().expert_counts.shape[0], 4);
  });
}

}  // namespace
}  // namespace mixlane
