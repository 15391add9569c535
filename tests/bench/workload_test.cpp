#include "workload/workload.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "core/numeric.hpp"
#include "support/errors.hpp"

namespace mixlane::bench {
namespace {

RoutingConfig routing(int num_experts, int num_topk, int num_groups = 1, int topk_groups = 1) {
  RoutingConfig config;
  config.num_experts = num_experts;
  config.num_topk = num_topk;
  config.num_groups = num_groups;
  config.topk_groups = topk_groups;
  if (num_groups > 1) config.scoring = Scoring::sigmoid;
  return config;
}

WorkloadRequest request(const char* workload, const RoutingConfig& config, int num_ranks, int tokens) {
  WorkloadRequest all;
  all.workload = parse_workload(workload);
  all.routing = config;
  all.num_ranks = num_ranks;
  all.tokens = tokens;
  all.seed = 7;
  for (int e = 0; e < config.num_experts; ++e) all.expert_rank.push_back(e * num_ranks / config.num_experts);
  return all;
}

std::vector<int64_t> histogram(const std::vector<int32_t>& columns, int num_columns) {
  std::vector<int64_t> counts(static_cast<size_t>(num_columns));
  for (const int32_t column : columns) ++counts[column];
  return counts;
}

// The model's choice by plain sorting, groups included; written against routing.hpp's definition.
std::vector<int> plain_choice(const RoutingConfig& config, std::vector<float> scores) {
  const int columns = static_cast<int>(scores.size());
  if (config.num_groups > 1) {
    const int size = config.num_experts / config.num_groups;
    for (float& x : scores) x = 1.0f / (1.0f + std::exp(-x));
    std::vector<std::pair<float, int>> groups;
    for (int g = 0; g < config.num_groups; ++g) {
      std::vector<float> best(scores.begin() + g * size, scores.begin() + (g + 1) * size);
      std::sort(best.rbegin(), best.rend());
      groups.emplace_back(-(best[0] + best[1]), g);
    }
    std::sort(groups.begin(), groups.end());
    for (int i = config.topk_groups; i < config.num_groups; ++i)
      std::fill_n(scores.begin() + groups[i].second * size, size, -1e30f);
  }
  std::vector<int> order(static_cast<size_t>(columns));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return scores[a] > scores[b]; });
  order.resize(static_cast<size_t>(config.num_topk));
  return order;
}

TEST(Workload, ParsesEveryNameAndRefusesTheRest) {
  for (const char* name : {"balanced", "uniform", "zipf:1.2", "hot_expert", "hot_rank", "one_expert", "ragged"})
    EXPECT_EQ(to_string(parse_workload(name)), name);
  EXPECT_EQ(parse_workload("zipf:1.2").exponent, 1.2);
  for (const char* bad :
       {"", "zipf", "zipf:", "zipf:x", "zipf:-1", "zipf:1.2x", "zipf:nan", "balanced:1", "Balanced", "hot"})
    mixlane::test::expect_error(ErrorCode::invalid_argument, {bad, "zipf:1.2", "hot_rank"}, [&] { parse_workload(bad); });
}

TEST(Workload, BalancedGivesEveryExpertTheSame) {
  // 4 ranks x 48 tokens x 8 = 1536 pairs = 12 per expert.
  const auto counts = histogram(assign_columns(request("balanced", routing(128, 8), 4, 48)), 128);
  EXPECT_EQ(*std::min_element(counts.begin(), counts.end()), 12);
  EXPECT_EQ(*std::max_element(counts.begin(), counts.end()), 12);
  // With DeepSeek's group limit the choice of groups costs a little evenness.
  const auto grouped = histogram(assign_columns(request("balanced", routing(256, 8, 8, 4), 8, 64)), 256);
  EXPECT_GE(*std::min_element(grouped.begin(), grouped.end()), 14);
  EXPECT_LE(*std::max_element(grouped.begin(), grouped.end()), 18);
}

TEST(Workload, UniformSpreadsAsChanceDoes) {
  for (const RoutingConfig& config : {routing(64, 4), routing(64, 4, 8, 2)}) {
    const auto counts = histogram(assign_columns(request("uniform", config, 4, 4000)), 64);
    double square = 0;
    for (const int64_t count : counts) square += std::pow(static_cast<double>(count) - 1000, 2) / 64;
    // Of 16000 tokens each takes an expert with probability 1/16: a variance of 937; the groups tie their members together.
    EXPECT_GT(square, 400);
    EXPECT_LT(square, 4000);
  }
}

TEST(Workload, OneExpertTakesEveryPair) {
  const auto columns = assign_columns(request("one_expert", routing(32, 4), 2, 10));
  ASSERT_EQ(columns.size(), 80u);
  for (const int32_t column : columns) EXPECT_EQ(column, columns[0]);
}

TEST(Workload, ZipfFollowsTheExponent) {
  const auto wanted = request("zipf:1.2", routing(64, 1), 4, 5000);
  auto counts = histogram(assign_columns(wanted), 64);
  std::sort(counts.rbegin(), counts.rend());
  double mass = 0;
  for (int n = 1; n <= 64; ++n) mass += std::pow(n, -1.2);
  for (const int n : {1, 2, 4, 8}) {
    const double expected = 20000 * std::pow(n, -1.2) / mass;
    EXPECT_NEAR(static_cast<double>(counts[n - 1]), expected, 5 * std::sqrt(expected)) << n;
  }
}

TEST(Workload, HotExpertIsInEveryToken) {
  for (const RoutingConfig& config : {routing(128, 8), routing(64, 8, 8, 3), routing(8, 1)}) {
    const auto counts = histogram(assign_columns(request("hot_expert", config, 4, 30)), config.num_experts);
    EXPECT_EQ(*std::max_element(counts.begin(), counts.end()), 120);
    EXPECT_EQ(std::count(counts.begin(), counts.end(), 120), 1);
  }
}

TEST(Workload, HotRankGetsEveryPairItHasExpertsFor) {
  const auto all_on_one = request("hot_rank", routing(128, 8), 4, 30);
  std::set<int> ranks;
  for (const int32_t e : assign_columns(all_on_one)) ranks.insert(all_on_one.expert_rank[e]);
  EXPECT_EQ(ranks.size(), 1u);
  // 2 experts per rank, 6 choices: each token has both of them.
  const auto small = request("hot_rank", routing(8, 6), 4, 10);
  std::vector<int64_t> per_rank(4);
  for (const int32_t e : assign_columns(small)) ++per_rank[small.expert_rank[e]];
  EXPECT_EQ(std::count(per_rank.begin(), per_rank.end(), 80), 1);
}

TEST(Workload, RaggedSharesAreAllDifferentFromNoneToAll) {
  auto tokens = rank_tokens(request("ragged", routing(8, 2), 5, 100));
  EXPECT_NE(tokens, (std::vector<int>{0, 25, 50, 75, 100}));
  std::sort(tokens.begin(), tokens.end());
  EXPECT_EQ(tokens, (std::vector<int>{0, 25, 50, 75, 100}));
  EXPECT_EQ(rank_tokens(request("ragged", routing(8, 2), 1, 100)), std::vector<int>{100});
  EXPECT_EQ(rank_tokens(request("balanced", routing(8, 2), 3, 9)), (std::vector<int>{9, 9, 9}));
}

TEST(Workload, LogitsMakeTheRoutingChooseWhatWasMeant) {
  RoutingConfig zero = routing(16, 4);
  zero.num_zero_experts = 8;
  for (const RoutingConfig& config : {routing(128, 8), routing(256, 8, 8, 4), routing(32, 32), routing(4, 1), zero})
    for (const char* workload : {"balanced", "uniform", "zipf:1.5", "hot_expert", "hot_rank", "ragged"}) {
      const auto wanted = request(workload, config, 3, 11);
      const auto columns = assign_columns(wanted);
      const auto num_topk = static_cast<size_t>(config.num_topk);
      std::vector<float> logits(static_cast<size_t>(config.num_experts + config.num_zero_experts));
      for (size_t t = 0; t < columns.size() / num_topk; ++t) {
        const std::span<const int32_t> meant(columns.data() + t * num_topk, num_topk);
        fill_logits(wanted, static_cast<int64_t>(t), meant, logits);
        const std::vector<int> chosen = plain_choice(config, logits);
        ASSERT_TRUE(std::equal(meant.begin(), meant.end(), chosen.begin())) << workload << " token " << t;
      }
    }
}

TEST(Workload, DataDependsOnSeedRankAndTokenOnly) {
  const auto wanted = request("zipf:1.1", routing(64, 4), 4, 20);
  EXPECT_EQ(assign_columns(wanted), assign_columns(wanted));
  auto other = wanted;
  other.step = 1;
  EXPECT_NE(assign_columns(wanted), assign_columns(other));

  std::vector<uint16_t> a(4096), b(4096), c(4096);
  fill_hidden(7, 1, 5, a);
  fill_hidden(7, 1, 5, b);
  fill_hidden(7, 2, 5, c);
  EXPECT_EQ(a, b);
  EXPECT_NE(a, c);
  double sum = 0, squares = 0;
  for (const uint16_t bits : a) {
    sum += bf16_to_f32(bits);
    squares += bf16_to_f32(bits) * bf16_to_f32(bits);
  }
  EXPECT_NEAR(sum / 4096, 0, 5.0 / 64);
  EXPECT_NEAR(squares / 4096, 1, 0.12);
}

}  // namespace
}  // namespace mixlane::bench
