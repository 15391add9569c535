// route against an oracle that scores in long double and sorts: ids exactly, weights within 1e-6.
#include "mixlane/routing.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "ops/routing/op.hpp"
#include "support/errors.hpp"
#include "support/random.hpp"

namespace mixlane {
namespace {

using test::expect_error;
using test::Rng;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Problem {
  RoutingConfig config{};
  int64_t num_tokens = 0;
  std::vector<float> logits = {};  // [num_tokens, E + Z], representable in dtype
  DType dtype = DType::f32;
  int64_t row_padding = 0;
  int num_threads = 1;
  bool wide_ids = false;
  std::vector<float> bias = {};
  std::vector<int32_t> valid_rows = {};  // empty or one value
  std::vector<int32_t> hash_table = {}, token_ids = {};
  std::vector<int32_t> replica_offsets = {}, replica_ids = {};
  int num_columns() const { return config.num_experts + config.num_zero_experts; }
};

struct Result {
  std::vector<int64_t> ids;
  std::vector<float> weights, zero_weights;
  Status status;
};

// --- the oracle ------------------------------------------------------------------------------------------------------

using Real = long double;

std::vector<Real> softmax(const std::vector<Real>& x) {
  Real sum = 0;
  std::vector<Real> out;
  for (const Real v : x) out.push_back(std::exp(v - *std::max_element(x.begin(), x.end())));
  for (const Real v : out) sum += v;
  for (Real& v : out) v /= sum;
  return out;
}

// Indices by descending value; equal ones ascend.
std::vector<int> ranking(const std::vector<float>& values) {
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return values[a] > values[b]; });
  return order;
}

std::vector<float> mask_groups(const RoutingConfig& c, std::vector<float> choice) {
  if (c.num_groups == 1) return choice;
  const int size = c.num_experts / c.num_groups;
  std::vector<float> group_scores;
  for (int g = 0; g < c.num_groups; ++g) {
    std::vector<float> members(choice.begin() + g * size, choice.begin() + (g + 1) * size);
    std::sort(members.begin(), members.end(), std::greater<>());
    group_scores.push_back(c.group_score == GroupScore::max ? members[0] : members[0] + members[1]);
  }
  const std::vector<int> order = ranking(group_scores);
  for (int i = c.topk_groups; i < c.num_groups; ++i) std::fill_n(choice.begin() + order[i] * size, size, -kInf);
  return choice;
}

void route_one(const Problem& p, int64_t token, std::vector<int>& ids, std::vector<Real>& weights) {
  const RoutingConfig& c = p.config;
  std::vector<Real> x;
  for (int e = 0; e < p.num_columns(); ++e) {
    float logit = p.logits[token * p.num_columns() + e];
    if (std::isnan(logit)) logit = -1e30f;
    if (std::isinf(logit)) logit = std::copysign(std::numeric_limits<float>::max(), logit);
    const Real capped = c.softcap > 0 ? c.softcap * std::tanh(static_cast<Real>(logit) / c.softcap) : logit;
    x.push_back(static_cast<float>(capped));
  }
  std::vector<Real> scores = x;
  if (c.scoring == Scoring::softmax) scores = softmax(x);
  if (c.scoring == Scoring::sigmoid)
    for (Real& s : scores) s = 1 / (1 + std::exp(-s));
  if (c.scoring == Scoring::sqrt_softplus)
    for (Real& s : scores) s = std::sqrt(s > 100 ? s : std::log1p(std::exp(s)));
  const bool by_score = !p.bias.empty() || c.num_groups > 1;
  const std::vector<Real>& compared = by_score ? scores : x;
  std::vector<float> choice(compared.begin(), compared.end());
  for (size_t e = 0; e < p.bias.size(); ++e) choice[e] += p.bias[e];
  ids = ranking(mask_groups(c, choice));
  ids.resize(c.num_topk);
  if (!p.hash_table.empty())
    for (int k = 0; k < c.num_topk; ++k) ids[k] = p.hash_table[p.token_ids[token] * c.num_topk + k];
  weights.clear();
  for (const int id : ids) weights.push_back(scores[id]);
  if (c.scoring == Scoring::topk_softmax) weights = softmax(weights);
  Real sum = c.renorm_epsilon;
  for (const Real w : weights) sum += w;
  for (Real& w : weights) w *= c.renormalize ? c.scale / sum : Real{c.scale};
}

struct Expected {
  std::vector<int64_t> ids;
  std::vector<Real> weights, zero_weights;
};

Expected oracle(const Problem& p) {
  const RoutingConfig& c = p.config;
  Expected all;
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    std::vector<int> ids(c.num_topk, -1);
    std::vector<Real> weights(c.num_topk, 0);
    const float* row = p.logits.data() + t * p.num_columns();
    const bool refused =
        c.nan_policy == NanPolicy::refuse && std::any_of(row, row + p.num_columns(), [](float v) { return std::isnan(v); });
    if (!refused && (p.valid_rows.empty() || t < p.valid_rows[0])) route_one(p, t, ids, weights);
    Real zero_weight = 0;
    for (int k = 0; k < c.num_topk; ++k) {
      int64_t id = ids[k];
      if (id >= c.num_experts) {
        zero_weight += weights[k];
        id = -1;
        weights[k] = 0;
      } else if (id >= 0 && !p.replica_offsets.empty()) {
        id = p.replica_ids[p.replica_offsets[id] + t % (p.replica_offsets[id + 1] - p.replica_offsets[id])];
      }
      all.ids.push_back(id);
      all.weights.push_back(weights[k]);
    }
    all.zero_weights.push_back(zero_weight);
  }
  return all;
}

// --- calling route ---------------------------------------------------------------------------------------------------

struct Call {
  std::vector<float> logits32;
  std::vector<uint16_t> logits16;
  std::vector<int32_t> ids32;
  Result out;
  RoutingArgs args;

  explicit Call(const Problem& p) {
    const int64_t stride = p.num_columns() + p.row_padding, topk = p.config.num_topk;
    logits32.assign(p.num_tokens * stride + 1, kNan);  // NaN between the rows: must not be read
    for (int64_t t = 0; t < p.num_tokens; ++t)
      std::copy_n(p.logits.begin() + t * p.num_columns(), p.num_columns(), logits32.begin() + t * stride);
    for (const float v : logits32) logits16.push_back(p.dtype == DType::f16 ? f32_to_f16(v) : f32_to_bf16(v));
    const void* data = p.dtype == DType::f32 ? static_cast<const void*>(logits32.data()) : logits16.data();
    args.config = p.config;
    args.logits = ConstTensorView(data, p.dtype, {p.num_tokens, p.num_columns()});
    args.logits.strides[0] = stride;
    const auto given = [](const auto& values, DType dtype) {
      return values.empty() ? ConstTensorView()
                            : ConstTensorView(values.data(), dtype, {static_cast<int64_t>(values.size())});
    };
    args.correction_bias = given(p.bias, DType::f32);
    args.num_valid_rows = given(p.valid_rows, DType::i32);
    args.token_ids = given(p.token_ids, DType::i32);
    args.replica_offsets = given(p.replica_offsets, DType::i32);
    args.replica_ids = given(p.replica_ids, DType::i32);
    if (!p.hash_table.empty())
      args.hash_table =
          ConstTensorView(p.hash_table.data(), DType::i32, {static_cast<int64_t>(p.hash_table.size()) / topk, topk});
    ids32.assign(p.num_tokens * topk + 1, -77);
    out.ids.assign(p.num_tokens * topk + 1, -77);
    out.weights.assign(p.num_tokens * topk + 1, -77.0f);
    out.zero_weights.assign(p.num_tokens + 1, -77.0f);
    args.topk_ids = p.wide_ids ? TensorView(out.ids.data(), DType::i64, {p.num_tokens, topk})
                               : TensorView(ids32.data(), DType::i32, {p.num_tokens, topk});
    args.topk_weights = TensorView(out.weights.data(), DType::f32, {p.num_tokens, topk});
    if (p.config.num_zero_experts > 0) args.zero_weights = TensorView(out.zero_weights.data(), DType::f32, {p.num_tokens});
    args.status = &out.status;
  }

  const Result& run(int num_threads = 1) {
    Context context({.num_threads = num_threads});
    route(context, args);
    if (args.topk_ids.dtype == DType::i32) out.ids.assign(ids32.begin(), ids32.end());
    EXPECT_EQ(out.ids.back(), -77) << "written behind the end";
    EXPECT_EQ(out.weights.back(), -77.0f) << "written behind the end";
    out.ids.pop_back();
    out.weights.pop_back();
    return out;
  }
};

void expect_close(float got, Real want, const char* what, size_t at) {
  EXPECT_NEAR(got, static_cast<double>(want), 1e-6 * std::fabs(static_cast<double>(want)) + 1e-44) << what << " " << at;
}

Result check(const Problem& p) {
  const RoutingConfig& c = p.config;
  SCOPED_TRACE(testing::Message() << "E " << c.num_experts << "+" << c.num_zero_experts << " K " << c.num_topk << " scoring "
                                  << static_cast<int>(c.scoring) << " groups " << c.topk_groups << "/" << c.num_groups << " "
                                  << name(p.dtype) << " bias " << !p.bias.empty());
  Call call(p);
  const Result got = call.run(p.num_threads);
  const Expected want = oracle(p);
  EXPECT_EQ(got.ids, want.ids);
  for (size_t i = 0; i < want.weights.size(); ++i) expect_close(got.weights[i], want.weights[i], "weight", i);
  if (c.num_zero_experts > 0)
    for (size_t t = 0; t < want.zero_weights.size(); ++t)
      expect_close(got.zero_weights[t], want.zero_weights[t], "zero weight", t);
  return got;
}

std::vector<float> random_logits(Rng& rng, int64_t count, DType dtype, bool many_ties) {
  std::vector<float> x = test::normal_f32(rng, count, 2.0f);
  for (float& v : x) {
    if (many_ties) v = std::round(v);  // -0 among them
    if (dtype == DType::bf16) v = bf16_to_f32(f32_to_bf16(v));
    if (dtype == DType::f16) v = f16_to_f32(f32_to_f16(v));
  }
  return x;
}

// --- tests -----------------------------------------------------------------------------------------------------------

TEST(Routing, EveryModelsFunction) {
  Rng rng(1);
  const auto S = Scoring::softmax;
  struct Model {
    RoutingConfig config;
    bool bias;
  };
  const Model models[] = {
      {{.num_experts = 64, .num_topk = 6, .scoring = S}, false},                         // DeepSeek-V2-Lite, OLMoE
      {{.num_experts = 128, .num_topk = 8, .scoring = S, .renormalize = true}, false},   // Qwen3
      {{.num_experts = 512, .num_topk = 10, .scoring = S, .renormalize = true}, false},  // Qwen3.5
      {{.num_experts = 8, .num_topk = 2, .scoring = Scoring::topk_softmax}, false},      // Mixtral
      {{.num_experts = 128, .num_topk = 4, .scoring = Scoring::topk_softmax}, false},    // gpt-oss
      {{.num_experts = 160,
        .num_topk = 6,
        .scale = 16.0f,
        .num_groups = 8,
        .topk_groups = 3,
        .group_score = GroupScore::max},
       false},  // DeepSeek-V2
      {{.num_experts = 256,
        .num_topk = 8,
        .scoring = Scoring::sigmoid,
        .renormalize = true,
        .scale = 2.5f,
        .num_groups = 8,
        .topk_groups = 4},
       true},  // -V3
      {{.num_experts = 384, .num_topk = 8, .scoring = Scoring::sigmoid, .renormalize = true, .scale = 2.827f},
       true},  // Kimi-K2
      {{.num_experts = 256, .num_topk = 8, .scoring = Scoring::sigmoid, .renormalize = true, .renorm_epsilon = 1e-20f},
       true},                                                                                          // MiniMax-M2
      {{.num_experts = 512, .num_topk = 22, .scoring = Scoring::sigmoid, .renormalize = true}, true},  // Nemotron-3
      {{.num_experts = 384, .num_topk = 6, .scoring = Scoring::sqrt_softplus, .renormalize = true, .scale = 2.5f},
       true},                                                                                              // DeepSeek-V4
      {{.num_experts = 128, .num_topk = 1, .scoring = Scoring::sigmoid, .weight_on_input = true}, false},  // Llama-4
      {{.num_experts = 64, .num_topk = 4, .scoring = Scoring::sigmoid}, false},                            // Inkling
      {{.num_experts = 512, .num_zero_experts = 256, .num_topk = 12, .scale = 6.0f}, true},                // LongCat
      {{.num_experts = 8, .num_topk = 2, .softcap = 30.0f}, false},                                        // Grok
      {{.num_experts = 896, .num_topk = 16, .scoring = Scoring::sigmoid, .renormalize = true}, false},     // Kimi-K3
      {{.num_experts = 1024, .num_topk = 32, .renormalize = true}, true},
      {{.num_experts = 1, .num_topk = 1}, false},
  };
  for (const Model& model : models)
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
      for (const bool many_ties : {false, true}) {
        Problem p{.config = model.config, .num_tokens = 23, .dtype = dtype, .row_padding = 3, .wide_ids = many_ties};
        p.logits = random_logits(rng, p.num_tokens * p.num_columns(), dtype, many_ties);
        if (model.bias) p.bias = random_logits(rng, p.num_columns(), DType::f32, many_ties);
        check(p);
        if (HasFailure()) return;
      }
}

TEST(Routing, RandomOptions) {
  Rng rng(2);
  const auto pick = [&](auto... values) {
    const std::common_type_t<decltype(values)...> list[] = {values...};
    return list[rng() % sizeof...(values)];
  };
  for (int i = 0; i < 400; ++i) {
    RoutingConfig c;
    c.scoring = pick(Scoring::softmax, Scoring::topk_softmax, Scoring::sigmoid, Scoring::sqrt_softplus);
    c.num_experts = pick(2, 7, 16, 48, 96, 160, 385);
    for (int divisor = pick(1, 2, 4, 8); divisor > 1; divisor /= 2)
      if (c.num_experts % divisor == 0 && c.num_experts / divisor >= 2) {
        c.num_groups = divisor;
        c.topk_groups = 1 + static_cast<int>(rng() % divisor);
        break;
      }
    if (c.num_groups == 1) c.num_zero_experts = pick(0, 0, 1, 16);
    c.group_score = pick(GroupScore::max, GroupScore::top2_sum);
    const int choosable = c.num_groups > 1 ? c.topk_groups * (c.num_experts / c.num_groups) : c.num_experts;
    c.num_topk = 1 + static_cast<int>(rng() % std::min(32, choosable));
    c.renormalize = rng() % 2;
    c.renorm_epsilon = pick(0.0f, 1e-20f, 0.01f);
    c.scale = pick(1.0f, 2.5f);
    c.softcap = pick(0.0f, 0.0f, 3.0f);
    c.nan_policy = pick(NanPolicy::refuse, NanPolicy::lowest);
    Problem p{.config = c, .num_tokens = pick(0, 1, 5, 40), .dtype = pick(DType::f32, DType::bf16, DType::f16)};
    p.num_threads = pick(1, 3);
    p.logits = random_logits(rng, p.num_tokens * p.num_columns(), p.dtype, rng() % 2);
    if (rng() % 2) p.bias = random_logits(rng, p.num_columns(), DType::f32, rng() % 2);
    if (rng() % 4 == 0) p.valid_rows = {static_cast<int32_t>(rng() % (p.num_tokens + 1))};
    if (rng() % 4 == 0) {
      for (int n = 0; n < 10 * c.num_topk; ++n) p.hash_table.push_back(static_cast<int32_t>(rng() % p.num_columns()));
      for (int64_t t = 0; t < p.num_tokens; ++t) p.token_ids.push_back(static_cast<int32_t>(rng() % 10));
    }
    if (rng() % 4 == 0) {
      p.replica_offsets = {0};
      for (int e = 0; e < c.num_experts; ++e) {
        for (int n = pick(1, 1, 2, 5); n > 0; --n) p.replica_ids.push_back(static_cast<int32_t>(p.replica_ids.size() * 3));
        p.replica_offsets.push_back(static_cast<int32_t>(p.replica_ids.size()));
      }
    }
    if (p.token_ids.empty()) p.hash_table.clear();
    check(p);
    if (HasFailure()) return;
  }
}

Result route_row(RoutingConfig config, std::vector<float> logits, std::vector<float> bias = {}) {
  config.num_experts = static_cast<int>(logits.size()) - config.num_zero_experts;
  Problem p{.config = config, .num_tokens = 1, .logits = std::move(logits), .bias = std::move(bias)};
  return Call(p).run();
}
using Ids = std::vector<int64_t>;

TEST(Routing, TiesGoToTheLowestIndexAndMinusZeroIsZero) {
  EXPECT_EQ(route_row({.num_topk = 3}, {1, 2, 2, 1, 2}).ids, (Ids{1, 2, 4}));
  EXPECT_EQ(route_row({.num_topk = 4}, {0, 0, 0, 0, 0, 0}).ids, (Ids{0, 1, 2, 3}));
  EXPECT_EQ(route_row({.num_topk = 3, .scoring = Scoring::topk_softmax}, {-0.0f, 0.0f, -0.0f, 0.0f}).ids, (Ids{0, 1, 2}));
  // sigmoid(30) and sigmoid(40) are the same f32: scores tie where they decide, and don't where the logits do.
  EXPECT_EQ(route_row({.num_topk = 1, .scoring = Scoring::sigmoid}, {30, 40}).ids, (Ids{1}));
  EXPECT_EQ(route_row({.num_topk = 1, .scoring = Scoring::sigmoid, .num_groups = 2, .topk_groups = 2}, {30, 40, 0, 0}).ids,
            (Ids{0}));
  // Groups 1 and 2 tie for the second place.
  EXPECT_EQ(
      route_row({.num_topk = 4, .scoring = Scoring::topk_softmax, .num_groups = 3, .topk_groups = 2}, {5, 5, 1, 3, 3, 1})
          .ids,
      (Ids{0, 1, 3, 2}));
}

TEST(Routing, BiasChoosesButDoesNotWeigh) {
  const Result r = route_row({.num_topk = 1, .scoring = Scoring::sigmoid}, {0, 3, 0}, {0, -1, 0.5f});
  EXPECT_EQ(r.ids, (Ids{2}));
  EXPECT_EQ(r.weights[0], 0.5f);
}

TEST(Routing, ClosedGroupsStayClosedWhenEverythingOpenIsNegative) {
  // Masking with 0 would choose the experts of the closed group before the biased ones.
  const RoutingConfig c{.num_topk = 2, .scoring = Scoring::sigmoid, .num_groups = 2, .topk_groups = 1};
  EXPECT_EQ(route_row(c, {0, 0, 0, 0}, {-2, -2, -1, -1.5f}).ids, (Ids{2, 3}));
  const RoutingConfig max{.num_topk = 2, .num_groups = 2, .topk_groups = 1, .group_score = GroupScore::max};
  EXPECT_EQ(route_row(max, {3, -9, 2, 2}).ids, (Ids{0, 1}));  // top2_sum would take the other group
}

TEST(Routing, NanIsRefusedOrLowest) {
  Rng rng(3);
  Problem p{.config = {.num_experts = 64, .num_topk = 4}, .num_tokens = 3000};
  p.logits = random_logits(rng, p.num_tokens * 64, DType::f32, false);
  for (const int64_t token : {2999, 70, 1500}) p.logits[token * 64 + token % 64] = kNan;
  for (const int threads : {1, 4}) {
    p.num_threads = threads;
    const Result r = check(p);
    EXPECT_EQ(r.status.code, ErrorCode::nan_logits);
    EXPECT_EQ(r.status.token, 70);
    EXPECT_EQ(r.status.failures, 3);
  }
  Call call(p);
  call.args.status = nullptr;
  expect_error(ErrorCode::nan_logits, {"token 70", "3 such tokens"}, [&] { call.run(); });
  p.config.nan_policy = NanPolicy::lowest;
  EXPECT_TRUE(check(p).status.ok());
  const Result r = route_row({.num_topk = 3, .nan_policy = NanPolicy::lowest}, {-kNan, kNan, -50.0f});
  EXPECT_EQ(r.ids, (Ids{2, 0, 1}));
  EXPECT_EQ(r.weights, (std::vector<float>{1, 0, 0}));
}

TEST(Routing, InfinitiesCountAsTheLargestFiniteValues) {
  Result r = route_row({.num_topk = 3}, {1, kInf, kInf, -kInf});
  EXPECT_EQ(r.ids, (Ids{1, 2, 0}));
  EXPECT_EQ(r.weights, (std::vector<float>{0.5f, 0.5f, 0}));
  r = route_row({.num_topk = 2}, {-kInf, -kInf, -kInf, -kInf});
  EXPECT_EQ(r.ids, (Ids{0, 1}));
  EXPECT_EQ(r.weights, (std::vector<float>{0.25f, 0.25f}));
  r = route_row({.num_topk = 2, .scoring = Scoring::sigmoid, .renormalize = true}, {-kInf, -kInf});
  EXPECT_EQ(r.weights, (std::vector<float>{0, 0}));  // nothing to divide
  r = route_row({.num_topk = 2, .scoring = Scoring::sigmoid}, {-kInf, kInf, 0});
  EXPECT_EQ(r.ids, (Ids{1, 2}));
  EXPECT_EQ(r.weights, (std::vector<float>{1, 0.5f}));
  r = route_row({.num_topk = 1, .scoring = Scoring::sqrt_softplus}, {1, kInf});
  EXPECT_TRUE(std::isfinite(r.weights[0]));
  r = route_row({.num_topk = 2, .softcap = 30}, {-kInf, kInf});
  EXPECT_EQ(r.ids, (Ids{1, 0}));
  // A bias of -inf takes experts out of the choice as long as there are others.
  EXPECT_EQ(route_row({.num_topk = 2}, {9, 1, 2, 3}, {-kInf, 0, 0, kNan}).ids, (Ids{2, 1}));
}

TEST(Routing, ZeroExpertsLeaveTheListAndSumUp) {
  const Result r = route_row({.num_zero_experts = 2, .num_topk = 3, .scoring = Scoring::sigmoid, .scale = 2}, {-1, 0, 5, 5});
  EXPECT_EQ(r.ids, (Ids{-1, -1, 1}));
  EXPECT_EQ(r.weights[0], 0);
  EXPECT_EQ(r.weights[2], 1.0f);
  EXPECT_NEAR(r.zero_weights[0], 4 / (1 + std::exp(-5.0)), 1e-6);
}

TEST(Routing, ReplicasTakeTurnsByToken) {
  Problem p{.config = {.num_experts = 2, .num_topk = 2}, .num_tokens = 4, .logits = {2, 1, 2, 1, 2, 1, 2, 1}};
  p.replica_offsets = {0, 3, 4};
  p.replica_ids = {10, 11, 12, 7};
  EXPECT_EQ(Call(p).run().ids, (Ids{10, 7, 11, 7, 12, 7, 10, 7}));
  const auto refused = [&](std::vector<int32_t> offsets, std::vector<std::string> mentions) {
    p.replica_offsets = std::move(offsets);
    Call call(p);
    expect_error(ErrorCode::invalid_argument, mentions, [&] { call.run(); });
  };
  refused({0, 4, 4}, {"replica_offsets[1..2]", "4, 4"});
  refused({0, 3, 5}, {"from 0 to 5", "4 replica_ids"});
  refused({1, 3, 4}, {"from 1 to 4"});
}

TEST(Routing, HashRoutingReportsBadIds) {
  Problem p{.config = {.num_experts = 4, .num_topk = 2, .scoring = Scoring::sigmoid, .renormalize = true}, .num_tokens = 4};
  p.logits.assign(16, 0.0f);
  p.hash_table = {3, 1, 0, 0, 2, 4};
  p.token_ids = {0, 2, 1, 0};
  Result r = Call(p).run();
  EXPECT_EQ(r.ids, (Ids{3, 1, -1, -1, 0, 0, 3, 1}));
  EXPECT_EQ(r.weights, (std::vector<float>{0.5f, 0.5f, 0, 0, 0.5f, 0.5f, 0.5f, 0.5f}));
  EXPECT_EQ(r.status.code, ErrorCode::bad_expert_id);
  EXPECT_EQ(r.status.token, 1);
  EXPECT_EQ(r.status.got, 4);
  EXPECT_EQ(r.status.expected, 4);
  p.token_ids = {0, 1, 3, -1};
  r = Call(p).run();
  EXPECT_EQ(r.ids, (Ids{3, 1, 0, 0, -1, -1, -1, -1}));
  EXPECT_EQ(r.status.token, 2);
  EXPECT_EQ(r.status.failures, 2);
  EXPECT_EQ(r.status.got, 3);
  EXPECT_EQ(r.status.expected, 3);
}

TEST(Routing, RowsBehindTheValidOnesAreEmpty) {
  Rng rng(4);
  Problem p{.config = {.num_experts = 16, .num_zero_experts = 2, .num_topk = 2}, .num_tokens = 6};
  p.logits = random_logits(rng, 6 * 18, DType::f32, false);
  p.logits[5 * 18] = kNan;  // in a row that does not count
  for (const int32_t valid : {5, 2, 0, -3}) {
    p.valid_rows = {valid};
    EXPECT_TRUE(check(p).status.ok());
  }
  p.valid_rows = {1000};
  EXPECT_EQ(check(p).status.token, 5);
}

TEST(Routing, ConfigErrorsNameFieldValueAndRange) {
  const auto refused = [](std::vector<std::string> mentions, auto change) {
    RoutingConfig c{.num_experts = 64, .num_topk = 8, .num_groups = 8, .topk_groups = 4};
    validate(c);
    change(c);
    expect_error(ErrorCode::invalid_argument, mentions, [&] { validate(c); });
  };
  refused({"num_experts is 0", "1..1024"}, [](RoutingConfig& c) { c.num_experts = 0; });
  refused({"num_experts is 1025", "1..1024"}, [](RoutingConfig& c) { c.num_experts = 1025; });
  refused({"num_zero_experts is -1"}, [](RoutingConfig& c) { c.num_zero_experts = -1; });
  refused({"num_topk is 33", "1..32"}, [](RoutingConfig& c) { c.num_topk = 33; });
  refused({"num_topk is 0", "1..32"}, [](RoutingConfig& c) { c.num_topk = 0; });
  refused({"num_topk is 8", "1..4"}, [](RoutingConfig& c) { c.num_experts = 4; });
  refused({"num_groups is 7", "divide num_experts (64)"}, [](RoutingConfig& c) { c.num_groups = 7; });
  refused({"num_groups is 65", "1..64"}, [](RoutingConfig& c) { c.num_groups = 65; });
  refused({"topk_groups is 9", "1..8"}, [](RoutingConfig& c) { c.topk_groups = 9; });
  refused({"topk_groups is 0", "1..8"}, [](RoutingConfig& c) { c.topk_groups = 0; });
  refused({"topk_groups is 1", "leaves 8", "num_topk = 9"}, [](RoutingConfig& c) { c.topk_groups = 1, c.num_topk = 9; });
  refused({"num_groups is 64", "top2_sum"}, [](RoutingConfig& c) { c.num_groups = c.topk_groups = 64; });
  refused({"num_groups is 8", "num_zero_experts (2)"}, [](RoutingConfig& c) { c.num_zero_experts = 2; });
  refused({"scale is 0", "> 0"}, [](RoutingConfig& c) { c.scale = 0; });
  refused({"scale is nan"}, [](RoutingConfig& c) { c.scale = kNan; });
  refused({"softcap is -1", ">= 0"}, [](RoutingConfig& c) { c.softcap = -1; });
  refused({"renorm_epsilon is inf"}, [](RoutingConfig& c) { c.renorm_epsilon = kInf; });
  refused({"scoring is 9"}, [](RoutingConfig& c) { c.scoring = static_cast<Scoring>(9); });
}

TEST(Routing, ArgumentErrorsNameValueAndRule) {
  Problem p{.config = {.num_experts = 8, .num_topk = 2}, .num_tokens = 3, .logits = std::vector<float>(24)};
  const auto refused = [&](std::vector<std::string> mentions, auto change) {
    Call call(p);
    change(call.args);
    expect_error(ErrorCode::invalid_argument, mentions, [&] { call.run(); });
    EXPECT_EQ(call.ids32[0], -77);
  };
  std::vector<int32_t> memory(100);
  const auto i32 = [&](std::initializer_list<int64_t> shape) { return TensorView(memory.data(), DType::i32, shape); };
  refused({"logits is f32[3, 8]", "[*, 10]"}, [](RoutingArgs& a) { a.config.num_zero_experts = 2; });
  refused({"logits is f64"}, [](RoutingArgs& a) { a.logits.dtype = DType::f64; });
  refused({"correction_bias is i32[8]", "f32 [8]"}, [&](RoutingArgs& a) { a.correction_bias = i32({8}); });
  refused({"topk_ids is i32[3, 3]", "[3, 2]"}, [&](RoutingArgs& a) { a.topk_ids = i32({3, 3}); });
  refused({"topk_weights is required"}, [](RoutingArgs& a) { a.topk_weights = {}; });
  refused({"token_ids is required"}, [&](RoutingArgs& a) { a.hash_table = i32({5, 2}); });
  refused({"hash_table is i32[5, 3]", "[*, 2]"}, [&](RoutingArgs& a) { a.hash_table = i32({5, 3}); });
  refused({"replica_offsets is i32[8]", "[9]"}, [&](RoutingArgs& a) { a.replica_offsets = i32({8}); });
  refused({"replica_ids is required"}, [&](RoutingArgs& a) { a.replica_offsets = i32({9}); });
  refused({"zero_weights is required"}, [](RoutingArgs& a) {
    a.config.num_experts = 6;
    a.config.num_zero_experts = 2;
  });
  refused({"'routing.fast'", "auto, routing.cpu"}, [](RoutingArgs& a) { a.variant = "routing.fast"; });
}

TEST(Routing, CostCountsEveryByteOnce) {
  Problem p{.config = {.num_experts = 8, .num_topk = 2}, .num_tokens = 3, .logits = std::vector<float>(24)};
  p.dtype = DType::bf16;
  const Cost cost = routing_cost(Call(p).args);
  EXPECT_EQ(cost.bytes_read, 3 * 8 * 2);
  EXPECT_EQ(cost.bytes_written, 3 * 2 * 8);
  EXPECT_EQ(routing_variants().at(0).id, "routing.cpu");
}

}  // namespace
}  // namespace mixlane
