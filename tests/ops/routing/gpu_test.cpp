// Every routing variant of the GPU against routing.cpu: ids, weights within 1e-6, statuses.
#include "support/gpu.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <deque>
#include <functional>

#include "core/numeric.hpp"
#include "ops/routing/launchers.hpp"
#include "ops/routing/op.hpp"
#include "support/random.hpp"
#include "wave16.hpp"

namespace mixlane {
namespace {

using namespace test;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr char kPoison = static_cast<char>(0xa5);

struct Problem {
  RoutingConfig config{};
  int64_t num_tokens = 0;
  DType dtype = DType::f32;
  int64_t row_padding = 0;
  bool wide_ids = false;
  std::vector<float> logits = {};  // [num_tokens, columns], rounded to dtype by Call
  std::vector<float> bias = {};
  std::vector<int32_t> valid_rows = {}, hash_table = {}, token_ids = {}, replica_offsets = {}, replica_ids = {};
  int num_columns() const { return config.num_experts + config.num_zero_experts; }
};

std::string describe(const Problem& p) {
  const RoutingConfig& c = p.config;
  return fmt::format("{} tokens, {} + {} experts, top {}, scoring {}, groups {}/{}, {}, bias {}, hash {}, softcap {}",
                     p.num_tokens, c.num_experts, c.num_zero_experts, c.num_topk, static_cast<int>(c.scoring), c.topk_groups,
                     c.num_groups, name(p.dtype), p.bias.size(), p.hash_table.size(), c.softcap);
}

// A problem's memory and arguments, on the host or on the GPU.
class Call {
 public:
  Call(const Problem& p, Device device, int64_t offset) : problem_(p), device_(device), offset_(offset) {
    const int64_t columns = p.num_columns(), pairs = p.num_tokens * p.config.num_topk;
    const int64_t stride = columns + p.row_padding, bytes = bits(p.dtype) / 8;
    logits_.assign(static_cast<size_t>(p.num_tokens * stride * bytes + 1), kPoison);
    for (int64_t t = 0; t < p.num_tokens; ++t)
      for (int64_t e = 0; e < columns; ++e) put(logits_.data() + (t * stride + e) * bytes, p.logits[t * columns + e]);
    args.config = p.config;
    args.logits = {logits_.data(), p.dtype, {p.num_tokens, columns}, device};
    args.logits.strides[0] = stride;
    place(args.logits, static_cast<int64_t>(logits_.size()), offset * bytes);
    input(args.correction_bias, p.bias, DType::f32, {columns});
    input(args.num_valid_rows, p.valid_rows, DType::i32, {1});
    input(args.hash_table, p.hash_table, DType::i32,
          {static_cast<int64_t>(p.hash_table.size()) / p.config.num_topk, p.config.num_topk});
    input(args.token_ids, p.token_ids, DType::i32, {p.num_tokens});
    input(args.replica_offsets, p.replica_offsets, DType::i32, {p.config.num_experts + 1});
    input(args.replica_ids, p.replica_ids, DType::i32, {static_cast<int64_t>(p.replica_ids.size())});
    output(args.topk_ids, ids_, p.wide_ids ? DType::i64 : DType::i32, {p.num_tokens, p.config.num_topk}, pairs);
    output(args.topk_weights, weights_, DType::f32, {p.num_tokens, p.config.num_topk}, pairs);
    if (p.config.num_zero_experts > 0) output(args.zero_weights, zero_weights_, DType::f32, {p.num_tokens}, p.num_tokens);
    args.status = &status;
    if (device.type != DeviceType::cpu)
      args.status = static_cast<Status*>(twins_.emplace_back(&status, sizeof(Status), 0).data());
  }

  void send(Stream stream) {
    for (const Twin& twin : twins_) twin.send(stream);
  }
  void fetch(Stream stream) {
    for (const Twin& twin : twins_) twin.fetch(stream);
    gpu::synchronize(stream);
  }

  int64_t id(int64_t at) const {
    int64_t wide = 0;
    int32_t narrow = 0;
    if (problem_.wide_ids) std::memcpy(&wide, ids_.data() + at * 8, 8);
    if (!problem_.wide_ids) std::memcpy(&narrow, ids_.data() + at * 4, 4);
    return problem_.wide_ids ? wide : narrow;
  }
  float weight(int64_t at) const { return f32(weights_, at); }
  float zero_weight(int64_t at) const { return f32(zero_weights_, at); }

  RoutingArgs args;
  Status status;

 private:
  static float f32(const std::vector<char>& memory, int64_t at) {
    float value;
    std::memcpy(&value, memory.data() + at * 4, 4);
    return value;
  }
  void put(char* to, float value) const {
    const uint16_t half = problem_.dtype == DType::bf16 ? f32_to_bf16(value) : f32_to_f16(value);
    if (problem_.dtype == DType::f32)
      std::memcpy(to, &value, 4);
    else
      std::memcpy(to, &half, 2);
  }
  template <class View>
  void place(View& view, int64_t bytes, int64_t offset) {
    view.device = device_;
    if (device_.type == DeviceType::cpu) return;
    view.data = twins_.emplace_back(const_cast<void*>(static_cast<const void*>(view.data)), bytes, offset).data();
  }
  template <class T>
  void input(ConstTensorView& view, const std::vector<T>& values, DType dtype, std::initializer_list<int64_t> shape) {
    if (values.empty()) return;
    view = {values.data(), dtype, shape, device_};
    place(view, static_cast<int64_t>(values.size() * sizeof(T)), offset_ * 4);
  }
  void output(TensorView& view, std::vector<char>& memory, DType dtype, std::initializer_list<int64_t> shape,
              int64_t count) {
    memory.assign(static_cast<size_t>(size_bytes(dtype, count)) + 1, kPoison);
    view = {memory.data(), dtype, shape, device_};
    place(view, static_cast<int64_t>(memory.size()), offset_ * bits(dtype) / 8);
  }

  const Problem& problem_;
  Device device_;
  int64_t offset_;  // in values, from what is aligned
  std::vector<char> logits_, ids_, weights_, zero_weights_;
  std::deque<Twin> twins_;
};

void expect_close(float got, float expected) { EXPECT_NEAR(got, expected, 1e-6 * std::fabs(expected) + 1e-37) << "weight"; }

void expect_same(const Problem& p, const Call& expected, const Call& got) {
  const int num_topk = p.config.num_topk;
  for (int64_t t = 0; t < p.num_tokens && !testing::Test::HasFailure(); ++t) {
    for (int k = 0; k < num_topk; ++k) {
      const int64_t at = t * num_topk + k;
      EXPECT_EQ(got.id(at), expected.id(at)) << "token " << t << " place " << k;
      expect_close(got.weight(at), expected.weight(at));
    }
    if (p.config.num_zero_experts > 0) expect_close(got.zero_weight(t), expected.zero_weight(t));
  }
  EXPECT_EQ(got.status.code, expected.status.code);
  EXPECT_EQ(got.status.token, expected.status.token);
  EXPECT_EQ(got.status.expected, expected.status.expected);
  EXPECT_EQ(got.status.got, expected.status.got);
}

template <class T>
T pick(Rng& rng, std::initializer_list<T> from) {
  return from.begin()[rng() % from.size()];
}

Problem simple(Rng& rng, int64_t tokens, int experts, int topk, Scoring scoring = Scoring::softmax,
               DType dtype = DType::f32) {
  Problem p;
  p.config.num_experts = experts;
  p.config.num_topk = topk;
  p.config.scoring = scoring;
  p.num_tokens = tokens;
  p.dtype = dtype;
  p.logits = normal_f32(rng, tokens * experts, 2.0f);
  return p;
}

Problem random_problem(Rng& rng, int max_columns) {
  const int experts = static_cast<int>(1 + rng() % pick<uint64_t>(rng, {8, 64, 256, 256, 1024}));
  Problem p;
  RoutingConfig& c = p.config;
  c.num_experts = std::min(experts, max_columns);
  if (rng() % 5 == 0) c.num_zero_experts = static_cast<int>(rng() % (max_columns - c.num_experts + 1));
  c.num_topk = static_cast<int>(1 + rng() % std::min<uint64_t>(rng() % 2 ? 8 : 32, p.num_columns()));
  c.scoring = static_cast<Scoring>(rng() % 4);
  c.renormalize = rng() % 2 == 0;
  if (rng() % 4 == 0) c.renorm_epsilon = 1e-20f;
  c.scale = pick(rng, {1.0f, 2.5f});
  if (rng() % 6 == 0) c.softcap = 30.0f;
  c.nan_policy = static_cast<NanPolicy>(rng() % 2);
  p.num_tokens = static_cast<int64_t>(rng() % pick<uint64_t>(rng, {4, 40, 600}));
  p.dtype = pick(rng, {DType::f32, DType::bf16, DType::f16});
  p.row_padding = static_cast<int64_t>(rng() % 2 * (rng() % 9));
  p.wide_ids = rng() % 3 == 0;
  const int columns = p.num_columns();
  p.logits = normal_f32(rng, p.num_tokens * columns, 2.0f);
  if (rng() % 3 == 0)  // ties
    for (float& logit : p.logits) logit = std::round(logit);
  if (rng() % 3 == 0) p.bias = normal_f32(rng, columns, 0.1f);
  if (c.num_zero_experts == 0 && rng() % 3 == 0)
    for (const int groups : {8, 4, 3, 2, 64}) {
      if (experts > max_columns || c.num_experts % groups != 0 || c.num_experts / groups < 2) continue;
      const int needed = (c.num_topk * groups + c.num_experts - 1) / c.num_experts;
      c.num_groups = groups;
      c.topk_groups = needed + static_cast<int>(rng() % (groups - needed + 1));
      c.group_score = static_cast<GroupScore>(rng() % 2);
      break;
    }
  if (p.num_tokens > 0 && rng() % 3 == 0)
    for (int i = 0; i < 5; ++i) p.logits[rng() % p.logits.size()] = pick(rng, {kNan, kInf, -kInf, -0.0f, 1e38f});
  if (rng() % 4 == 0) p.valid_rows = {static_cast<int32_t>(rng() % (p.num_tokens + 3)) - 1};
  if (rng() % 5 == 0) {
    const int vocabulary = 50;
    for (int i = 0; i < vocabulary * c.num_topk; ++i) p.hash_table.push_back(static_cast<int32_t>(rng() % columns));
    if (rng() % 2) p.hash_table[rng() % p.hash_table.size()] = columns;
    for (int64_t t = 0; t < p.num_tokens; ++t) p.token_ids.push_back(static_cast<int32_t>(rng() % vocabulary));
    if (p.num_tokens > 0 && rng() % 2) p.token_ids[rng() % p.token_ids.size()] = vocabulary;
    if (p.num_tokens == 0) p.hash_table.clear();
  }
  if (rng() % 5 == 0) {
    p.replica_offsets = {0};
    for (int e = 0; e < c.num_experts; ++e) {
      for (uint64_t r = 0; r <= rng() % 3; ++r) p.replica_ids.push_back(static_cast<int32_t>(p.replica_ids.size()));
      p.replica_offsets.push_back(static_cast<int32_t>(p.replica_ids.size()));
    }
  }
  return p;
}

class RoutingGpu : public GpuTest {
 protected:
  using Run = std::function<void(const RoutingArgs&, Stream)>;

  void compare(const Problem& p, const Call& expected, int64_t offset, const Run& run) {
    Call got(p, gpu_device(), offset);
    const gpu::OwnedStream stream(gpu_device());
    got.send(stream.get());
    run(got.args, stream.get());
    got.fetch(stream.get());
    expect_same(p, expected, got);
  }

  void check(const Problem& p, int64_t offset = 0) {
    SCOPED_TRACE(describe(p));
    Call expected(p, {}, 0);
    Context cpu({.num_threads = 1});
    route(cpu, expected.args);
    Context context({.device = gpu_device()});
    for (const auto& variant : routing_gpu_variants()) {
      SCOPED_TRACE(variant.info.id);
      compare(p, expected, offset, [&](RoutingArgs args, Stream stream) {
        args.variant = variant.info.id;
        if (variant.refuse(context, args).empty())
          route(context, args, stream);
        else
          FAIL() << variant.refuse(context, args);
      });
    }
    if (p.num_columns() > kMaxSmallWaveColumns || p.num_tokens == 0) return;
    {
      SCOPED_TRACE("warp of 16");
      compare(p, expected, offset,
              [](const RoutingArgs& args, Stream stream) { launch_warp_of_16(routing_gpu::make_args(args), stream); });
    }
    if (p.config.num_topk > kMaxWave8Topk || !p.hash_table.empty()) return;
    SCOPED_TRACE("warp of 8");
    compare(p, expected, offset,
            [](const RoutingArgs& args, Stream stream) { launch_warp_of_8(routing_gpu::make_args(args), stream); });
  }
};

TEST_F(RoutingGpu, RandomOptions) {
  Rng rng(1);
  for (int i = 0; i < 400 && !HasFailure(); ++i) check(random_problem(rng, i % 2 ? 1024 : 256));
}

TEST_F(RoutingGpu, MisalignedTensors) {
  Rng rng(2);
  for (int i = 0; i < 60 && !HasFailure(); ++i) check(random_problem(rng, 256), 1 + i % 3);
}

TEST_F(RoutingGpu, ModelShapes) {
  Rng rng(3);
  struct Shape {
    int experts, topk;
  };
  for (const auto& [experts, topk] : {Shape{1, 1},
                                      {8, 2},
                                      {16, 1},
                                      {32, 4},
                                      {128, 8},
                                      {160, 6},
                                      {256, 8},
                                      {384, 8},
                                      {512, 10},
                                      {512, 22},
                                      {896, 16},
                                      {1024, 32}})
    for (const Scoring scoring : {Scoring::softmax, Scoring::topk_softmax, Scoring::sigmoid, Scoring::sqrt_softplus})
      check(simple(rng, 65, experts, topk, scoring, experts % 3 ? DType::f32 : DType::bf16));
}

TEST_F(RoutingGpu, DeepSeekV3) {
  Rng rng(4);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Problem p = simple(rng, 2000, 256, 8, Scoring::sigmoid, dtype);
    p.bias = normal_f32(rng, 256, 0.05f);
    p.config.num_groups = 8;
    p.config.topk_groups = 4;
    p.config.renormalize = true;
    p.config.scale = 2.5f;
    check(p);
  }
}

TEST_F(RoutingGpu, AllLogitsEqual) {
  Rng rng(5);
  for (const int topk : {1, 8, 32}) {
    Problem p = simple(rng, 20, 256, topk);
    std::fill(p.logits.begin(), p.logits.end(), 0.5f);
    check(p);
  }
}

// Logits that differ in their last bits only.
TEST_F(RoutingGpu, NeighbouringLogits) {
  Rng rng(6);
  for (const int experts : {40, 256, 700}) {
    Problem p = simple(rng, 200, experts, 8, Scoring::topk_softmax);
    for (float& logit : p.logits)
      logit = std::bit_cast<float>(std::bit_cast<uint32_t>(1.5f) + static_cast<uint32_t>(rng() % 4096));
    check(p);
  }
}

TEST_F(RoutingGpu, ManyTokens) {
  Rng rng(7);
  check(simple(rng, 20000, 128, 8));
  check(simple(rng, 3001, 256, 8, Scoring::softmax, DType::bf16));
  check(simple(rng, 20001, 512, 10));
  check(simple(rng, 262144, 64, 6, Scoring::softmax, DType::bf16));
  for (const int experts : {96, 256, 384, 500}) {
    Problem p = simple(rng, 20003, experts, 8, Scoring::sigmoid, experts == 384 ? DType::f16 : DType::f32);
    p.bias = normal_f32(rng, experts, 0.05f);
    p.config.renormalize = true;
    p.logits[7] = kNan;
    p.logits[experts * 5] = -kInf;
    check(p);
  }
}

// Equal choices at every place, the last one too, and more of them than are worth ranking.
TEST_F(RoutingGpu, FewDistinctLogits) {
  Rng rng(11);
  for (const int64_t tokens : {50, 20000})
    for (const uint64_t distinct : {2, 5, 20, 200})
      for (const bool biased : {false, true}) {
        Problem p = simple(rng, tokens, 256, 8, biased ? Scoring::sigmoid : Scoring::softmax);
        for (float& x : p.logits) x = static_cast<float>(rng() % distinct) * 0.01f;
        if (biased) p.bias.assign(256, 0.0f);
        check(p);
      }
}

// Scores of which some are equal or neighbours in f32, with nothing else to decide: any difference in their last bit from
// the CPU's shows in the ids.
TEST_F(RoutingGpu, ScoresAreTheCpusBitByBit) {
  Rng rng(10);
  for (const Scoring scoring : {Scoring::softmax, Scoring::sigmoid, Scoring::sqrt_softplus}) {
    Problem p = simple(rng, 20000, 256, 8, scoring);
    p.bias.assign(256, 0.0f);
    for (float& x : p.logits) x = x * 0.002f + (scoring == Scoring::sigmoid ? 4.0f : 0.5f);
    check(p);
  }
}

TEST_F(RoutingGpu, MoreThanAThousandColumns) {
  Rng rng(8);
  Problem p = simple(rng, 50, 1024, 12);
  p.config.num_zero_experts = 700;
  p.logits = normal_f32(rng, 50 * 1724, 2.0f);
  Call expected(p, {}, 0);
  Context cpu({.num_threads = 1});
  route(cpu, expected.args);
  Context context({.device = gpu_device()});
  compare(p, expected, 0, [&](const RoutingArgs& args, Stream stream) { route(context, args, stream); });
}

// What routing_warp_usual and routing_warp_many take: each of their kinds, with rows that they leave to the general kernel
// in between.
TEST_F(RoutingGpu, UsualRouters) {
  Rng rng(12);
  struct Kind {
    Scoring scoring;
    bool biased, grouped;
  };
  for (const auto& [scoring, biased, grouped] : {Kind{Scoring::softmax, false, false},
                                                 {Scoring::topk_softmax, false, false},
                                                 {Scoring::sigmoid, true, false},
                                                 {Scoring::sigmoid, true, true}})
    for (const int experts : {128, 256, 384, 512})
      for (const int topk : {1, 2, 5, 8})
        for (const int64_t tokens : {1, 3, 141, 5301}) {
          if (grouped && experts != 256) continue;
          Problem p = simple(rng, tokens, experts, topk, scoring, rng() % 2 ? DType::f32 : DType::bf16);
          RoutingConfig& c = p.config;
          c.renormalize = scoring == Scoring::softmax || rng() % 2 == 0;
          if (scoring != Scoring::softmax && rng() % 2) c.renorm_epsilon = 1e-3f;
          c.scale = pick(rng, {1.0f, 2.5f});
          c.nan_policy = static_cast<NanPolicy>(rng() % 2);
          if (grouped) {
            c.num_groups = 8;
            c.topk_groups = std::max((topk + 1) / 2, static_cast<int>(1 + rng() % 8));
            c.group_score = static_cast<GroupScore>(rng() % 2);
          }
          const uint64_t ties = rng() % 3;
          if (ties == 1)
            for (float& logit : p.logits) logit = std::round(logit * 16) / 16;
          if (biased) p.bias = normal_f32(rng, experts, 0.1f);
          if (biased && ties == 1)
            for (float& bias : p.bias) bias = std::round(bias * 4) / 4;
          if (biased && rng() % 4 == 0) p.bias[rng() % p.bias.size()] = pick(rng, {kNan, kInf, -kInf});
          if (rng() % 2)
            for (int64_t i = 0; i < 1 + tokens / 20; ++i)
              p.logits[rng() % p.logits.size()] = pick(rng, {kNan, kInf, -kInf, -0.0f, 1e38f, -1e38f});
          if (rng() % 3 == 0) std::fill_n(p.logits.begin(), experts, 0.25f);
          if (rng() % 3 == 0) p.valid_rows = {static_cast<int32_t>(rng() % (tokens + 3)) - 1};
          p.row_padding = pick(rng, {0, 4});
          check(p);
          if (HasFailure()) return;
        }
}

// The best columns are neighbours, in ascending, descending or no order: many candidates from few places.
TEST_F(RoutingGpu, ChosenColumnsBesideEachOther) {
  Rng rng(13);
  for (const int experts : {128, 256, 384, 512})
    for (const DType dtype : {DType::f32, DType::bf16})
      for (const bool biased : {false, true}) {
        Problem p = simple(rng, 2701, experts, 8, biased ? Scoring::sigmoid : Scoring::softmax, dtype);
        p.config.renormalize = true;
        if (biased) p.bias = normal_f32(rng, experts, 0.01f);
        for (int64_t t = 0; t < p.num_tokens; ++t) {
          const auto width = static_cast<int64_t>(2 + rng() % 15);
          const auto first = p.logits.begin() + t * experts + static_cast<int64_t>(rng() % (experts - width + 1));
          std::transform(first, first + width, first, [](float x) { return std::clamp(x, -2.0f, 2.0f) + 6.0f; });
          if (t % 3 == 1) std::sort(first, first + width);
          if (t % 3 == 2) std::sort(first, first + width, std::greater<>());
        }
        check(p);
      }
}

// Zeros of both signs are equal, beside logits of all bits.
TEST_F(RoutingGpu, SignedZeros) {
  Rng rng(14);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Problem p = simple(rng, 3001, 256, 8, Scoring::softmax, dtype);
    p.config.renormalize = true;
    for (float& x : p.logits) x = rng() % 64 == 0 ? 1.1f : pick(rng, {0.0f, -0.0f, -1.3f, -1.3f});
    check(p);
  }
}

// Equal ones again where all are negative.
TEST_F(RoutingGpu, FewDistinctNegativeLogits) {
  Rng rng(15);
  for (const DType dtype : {DType::f32, DType::bf16})
    for (const uint64_t distinct : {2, 20, 200}) {
      Problem p = simple(rng, 3001, 256, 8, Scoring::softmax, dtype);
      p.config.renormalize = true;
      for (float& x : p.logits) x = -1.0f - static_cast<float>(rng() % distinct) * 0.25f;
      check(p);
    }
}

// One captured graph, other row counts at each replay.
TEST_F(RoutingGpu, GraphReadsTheRowCount) {
  Rng rng(9);
  Problem p = simple(rng, 100, 256, 8);
  p.valid_rows = {0};
  Context context({.device = gpu_device()}), cpu({.num_threads = 1});
  Call got(p, gpu_device(), 0);
  const gpu::OwnedStream stream(gpu_device());
  const gpu::Graph graph = gpu::Graph::capture(gpu_device(), [&](Stream capturing) { route(context, got.args, capturing); });
  for (const int rows : {0, 100, 1, 57, -5, 1000, 99}) {
    SCOPED_TRACE(rows);
    p.valid_rows[0] = rows;
    got.send(stream.get());
    graph.launch(stream.get());
    got.fetch(stream.get());
    Call expected(p, {}, 0);
    route(cpu, expected.args);
    expect_same(p, expected, got);
  }
}

}  // namespace
}  // namespace mixlane
