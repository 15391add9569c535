// How the tokens of a step spread over experts and ranks: named, seeded patterns of routing skew.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mixlane/routing.hpp"

namespace mixlane::bench {

enum class Skew : uint8_t {
  balanced,    // every expert gets the same number of pairs, give or take one where the groups allow it
  uniform,     // every choice of experts is as likely as any other
  zipf,        // expert popularity ~ 1 / n^exponent, the order of popularity drawn from the seed
  hot_expert,  // one expert is in every token; the other choices are balanced
  hot_rank,    // the choices of every token lie on one rank's experts as far as it has enough of them
  one_expert,  // every pair goes to one expert, which no router does for more than one per token: the worst case of align
  ragged,      // balanced choices, but rank r has a share of the tokens between none and all, all shares different
};

struct Workload {
  Skew skew = Skew::balanced;
  double exponent = 0;  // zipf only
};

// "balanced", "uniform", "zipf:1.2", "hot_expert", "hot_rank", "one_expert" or "ragged"; throws invalid_argument listing them.
Workload parse_workload(std::string_view text);
std::string to_string(const Workload& workload);

struct WorkloadRequest {
  Workload workload;
  RoutingConfig routing;
  std::vector<int> expert_rank;  // owner of each expert
  int num_ranks = 1;
  int tokens = 0;  // per rank, as asked for
  uint64_t seed = 0;
  uint64_t step = 0;
};

// Realised tokens of each rank: `tokens` everywhere but for ragged.
std::vector<int> rank_tokens(const WorkloadRequest& request);

// The experts that each token of each rank, in rank order, is meant to get, best first: [sum of rank_tokens, K] columns of
// the logits, which are the experts and behind them the identity experts. Respects the group limit of the routing.
std::vector<int32_t> assign_columns(const WorkloadRequest& request);

// One token's logits that make the model's routing choose `columns` [K] in their order: high values for these, low ones for
// the others, noise on both. `token` counts over all ranks.
void fill_logits(const WorkloadRequest& request, int64_t token, std::span<const int32_t> columns, std::span<float> logits);

// One token's standard-normal logits with the largest of them at `columns`, in their order: what a router that knows no
// margins makes. Columns that repeat count once.
void fill_normal_logits(const WorkloadRequest& request, int64_t token, std::span<const int32_t> columns,
                        std::span<float> logits);

// The standard-normal bf16 hidden row of a token of a rank.
void fill_hidden(uint64_t seed, int rank, int64_t token, std::span<uint16_t> row);

}  // namespace mixlane::bench
