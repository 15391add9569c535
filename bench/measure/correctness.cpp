#include "measure/correctness.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.hpp"
#include "core/numeric.hpp"
#include "ops/quant/formats.hpp"

namespace mixlane::bench {
namespace {

constexpr int kMaxTokensPerRank = 32;
constexpr double kMaxFlops = 2e9;  // of all ranks together: plain loops, about a second

struct Token {
  int rank = 0;
  int64_t index = 0;
};

// The sampled tokens of all ranks, rank by rank, with what routing makes of them.
struct Sample {
  std::vector<Token> tokens;
  std::vector<uint16_t> hidden;  // bf16 [N, H]; fp8 experts quantise it as an fp8 wire does
  std::vector<int32_t> ids;      // [N, K]
  std::vector<float> weights;    // [N, K]
  std::vector<float> zero_weights;
  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
};

int tokens_per_rank(const MoeLayerConfig& config, const ExpertWeights& experts, int num_ranks) {
  const double per_pair = 6.0 * experts.hidden * experts.intermediate;
  const double wanted = kMaxFlops / (per_pair * config.routing.num_topk * num_ranks);
  return std::clamp(static_cast<int>(wanted), 1, kMaxTokensPerRank);
}

std::vector<Token> choose_tokens(const std::vector<int>& rank_tokens, int per_rank, const Gate& gate) {
  std::vector<Token> tokens;
  for (int r = 0; r < static_cast<int>(rank_tokens.size()); ++r) {
    if (gate.is_left_out(r)) continue;
    const int count = std::min(per_rank, rank_tokens[r]);
    for (int i = 0; i < count; ++i) tokens.push_back({r, static_cast<int64_t>(rank_tokens[r]) * i / count});
  }
  return tokens;
}

Sample take_sample(Context& context, const Gate& gate, const CheckRequest& request) {
  const RoutingConfig& routing = request.config.routing;
  const ExpertWeights& experts = request.weights.weights.experts;
  const int64_t hidden = experts.hidden;
  const int64_t columns = routing.num_experts + routing.num_zero_experts;
  Sample sample;
  sample.tokens =
      choose_tokens(request.tokens.rank_tokens(), tokens_per_rank(request.config, experts, gate.num_ranks()), gate);
  const int64_t n = sample.size();
  const int64_t num_topk = routing.num_topk;
  sample.hidden.resize(static_cast<size_t>(n * hidden));
  sample.ids.resize(static_cast<size_t>(n * num_topk));
  sample.weights.resize(static_cast<size_t>(n * num_topk));
  sample.zero_weights.resize(static_cast<size_t>(n));
  std::vector<float> logits(static_cast<size_t>(n * columns));
  for (int64_t i = 0; i < n; ++i) {
    const Token& token = sample.tokens[i];
    request.tokens.fill_hidden(token.rank, token.index, {sample.hidden.data() + i * hidden, static_cast<size_t>(hidden)});
    request.tokens.fill_logits(token.rank, token.index, {logits.data() + i * columns, static_cast<size_t>(columns)});
  }
  RoutingArgs args;
  args.config = routing;
  args.logits = {logits.data(), DType::f32, {n, columns}};
  args.correction_bias = request.weights.weights.correction_bias;
  args.topk_ids = {sample.ids.data(), DType::i32, {n, num_topk}};
  args.topk_weights = {sample.weights.data(), DType::f32, {n, num_topk}};
  if (routing.num_zero_experts > 0) args.zero_weights = {sample.zero_weights.data(), DType::f32, {n}};
  args.variant = "routing.cpu";
  route(context, args);
  return sample;
}

// A group of pairs for run_experts, in ascending order inside each expert.
struct Pairs {
  std::vector<int32_t> sorted, counts, offsets{0};
};

Pairs own_pairs(const Sample& sample, const int32_t* expert_map, int num_local_experts) {
  std::vector<std::vector<int32_t>> of_expert(static_cast<size_t>(num_local_experts));
  for (size_t pair = 0; pair < sample.ids.size(); ++pair)
    if (const int id = sample.ids[pair]; id >= 0 && expert_map[id] >= 0)
      of_expert[expert_map[id]].push_back(static_cast<int32_t>(pair));
  Pairs pairs;
  for (const auto& own : of_expert) {
    pairs.sorted.insert(pairs.sorted.end(), own.begin(), own.end());
    pairs.counts.push_back(static_cast<int32_t>(own.size()));
    pairs.offsets.push_back(static_cast<int32_t>(pairs.sorted.size()));
  }
  return pairs;
}

std::vector<uint16_t> run_reference(Context& context, const ExpertsArgs& base, const Pairs& pairs) {
  const auto slots = static_cast<int64_t>(pairs.sorted.size());
  std::vector<uint16_t> rows(static_cast<size_t>(slots * base.weights.hidden));
  if (slots == 0) return rows;
  ExpertsArgs args = base;
  args.sorted_pairs = {pairs.sorted.data(), DType::i32, {slots}};
  args.expert_counts = {pairs.counts.data(), DType::i32, {static_cast<int64_t>(pairs.counts.size())}};
  args.expert_offsets = {pairs.offsets.data(), DType::i32, {static_cast<int64_t>(pairs.offsets.size())}};
  args.output = {rows.data(), DType::bf16, {slots, base.weights.hidden}};
  args.variant = "experts.reference";
  run_experts(context, args);
  return rows;
}

// f64 [N, H]: what this rank's experts add to each sampled token.
std::vector<double> own_contributions(Context& context, const CheckRequest& request, const Sample& sample) {
  const ExpertWeights& experts = request.weights.weights.experts;
  const int64_t hidden = experts.hidden;
  const int64_t num_topk = request.config.routing.num_topk;
  const bool weight_on_input = request.config.routing.weight_on_input;
  const Pairs pairs = own_pairs(sample, request.expert_map.as<int32_t>(), experts.num_experts);
  ExpertsArgs args;
  args.weights = experts;
  args.activation = request.config.activation;
  args.rows = {sample.hidden.data(), DType::bf16, {sample.size(), hidden}};
  args.num_topk = static_cast<int>(num_topk);
  if (weight_on_input) args.input_weights = {sample.weights.data(), DType::f32, {sample.size(), num_topk}};
  const std::vector<uint16_t> rows = run_reference(context, args, pairs);
  std::vector<double> sums(static_cast<size_t>(sample.size() * hidden));
  for (size_t slot = 0; slot < pairs.sorted.size(); ++slot) {
    const int64_t pair = pairs.sorted[slot];
    const double weight = weight_on_input ? 1.0 : sample.weights[pair];
    double* sum = sums.data() + pair / num_topk * hidden;
    for (int64_t h = 0; h < hidden; ++h) sum[h] += weight * bf16_to_f32(rows[slot * hidden + h]);
  }
  return sums;
}

// Adds what does not travel: the shared experts, gated, and the identity experts' share of the hidden row.
void add_local_terms(Context& context, const CheckRequest& request, const Sample& sample, int rank,
                     std::vector<double>& sums) {
  const MoeLayerWeights& weights = request.weights.weights;
  const int64_t hidden = weights.experts.hidden;
  Pairs pairs;
  for (int64_t i = 0; i < sample.size(); ++i)
    if (sample.tokens[i].rank == rank) pairs.sorted.push_back(static_cast<int32_t>(i));
  pairs.counts = {static_cast<int32_t>(pairs.sorted.size())};
  pairs.offsets.push_back(pairs.counts[0]);
  std::vector<uint16_t> shared;
  if (weights.shared.num_experts > 0) {
    ExpertsArgs args;
    args.weights = weights.shared;
    args.activation = request.config.activation;
    args.rows = {sample.hidden.data(), DType::bf16, {sample.size(), hidden}};
    shared = run_reference(context, args, pairs);
  }
  for (size_t slot = 0; slot < pairs.sorted.size(); ++slot) {
    const uint16_t* row = sample.hidden.data() + pairs.sorted[slot] * hidden;
    double* sum = sums.data() + pairs.sorted[slot] * hidden;
    double gate = 1.0;
    if (weights.shared_gate.given()) {
      double dot = 0;
      for (int64_t h = 0; h < hidden; ++h) dot += bf16_to_f32(row[h]) * bf16_to_f32(weights.shared_gate.as<uint16_t>()[h]);
      gate = 1.0 / (1.0 + std::exp(-dot));
    }
    for (int64_t h = 0; h < hidden; ++h) {
      sum[h] += static_cast<double>(sample.zero_weights[pairs.sorted[slot]]) * bf16_to_f32(row[h]);
      if (!shared.empty()) sum[h] += gate * bf16_to_f32(shared[slot * hidden + h]);
    }
  }
}

// Sends every rank's contributions to the token's owner and leaves their sum there, ranks in order.
void sum_over_ranks(Gate& gate, const Sample& sample, int64_t hidden, std::vector<double>& sums) {
  size_t begin = 0;
  for (int owner = 0; owner < gate.num_ranks(); ++owner) {
    size_t end = begin;
    while (end < sample.tokens.size() && sample.tokens[end].rank == owner) ++end;
    const size_t first = begin * hidden, count = (end - begin) * hidden;
    begin = end;
    if (count > 0) std::memcpy(gate.mailbox(gate.rank()).data(), sums.data() + first, count * sizeof(double));
    gate.pass();
    if (owner == gate.rank() && count > 0) {
      std::fill_n(sums.data() + first, count, 0.0);
      for (int r = 0; r < gate.num_ranks(); ++r) {
        if (gate.is_left_out(r)) continue;
        const double* part = reinterpret_cast<const double*>(gate.mailbox(r).data());
        for (size_t i = 0; i < count; ++i) sums[first + i] += part[i];
      }
    }
    gate.pass();
  }
}

struct Norms {
  double difference2 = 0, reference2 = 0, tokens = 0;
};

Norms compare_own(const CheckRequest& request, const Sample& sample, int rank, const std::vector<double>& reference) {
  const int64_t hidden = request.weights.weights.experts.hidden;
  Norms norms;
  for (int64_t i = 0; i < sample.size(); ++i) {
    if (sample.tokens[i].rank != rank) continue;
    const uint16_t* output = request.output.as<uint16_t>() + sample.tokens[i].index * hidden;
    for (int64_t h = 0; h < hidden; ++h) {
      const double expected = reference[i * hidden + h];
      const double difference = bf16_to_f32(output[h]) - expected;
      norms.difference2 += difference * difference;
      norms.reference2 += expected * expected;
    }
    norms.tokens += 1;
  }
  return norms;
}

}  // namespace

int64_t check_mailbox_bytes(int hidden) {
  return int64_t{kMaxTokensPerRank} * hidden * static_cast<int64_t>(sizeof(double));
}

double tolerance(QuantFormat format) {
  // Rows, partial sums and output are each rounded to bf16: about 2^-9 each, at random.
  const double bf16 = 4e-3;
  // fp8 rounds the activation's result again: a sum in another order moves some values by one e4m3 step, 2^-4.
  return quantises_activations(format) ? 2e-2 : bf16;
}

Correctness check_layer(Context& context, Gate& gate, const CheckRequest& request) {
  const ExpertWeights& experts = request.weights.weights.experts;
  const Sample sample = take_sample(context, gate, request);
  std::vector<double> sums = own_contributions(context, request, sample);
  sum_over_ranks(gate, sample, experts.hidden, sums);
  add_local_terms(context, request, sample, gate.rank(), sums);
  const Norms own = compare_own(request, sample, gate.rank(), sums);
  Norms all;
  for (const auto& norms : gate.all_gather(std::span<const Norms>(&own, 1)))
    for (const Norms& each : norms) {
      all.difference2 += each.difference2;
      all.reference2 += each.reference2;
      all.tokens += each.tokens;
    }
  Correctness result;
  result.checked_tokens = static_cast<int>(all.tokens);
  result.rel_error = all.reference2 > 0 ? std::sqrt(all.difference2 / all.reference2) : std::sqrt(all.difference2);
  result.tolerance = tolerance(experts.format);
  result.reference = "routing.cpu, experts.reference, sums in f64";
  result.passed = result.rel_error <= result.tolerance;  // false for NaN
  return result;
}

}  // namespace mixlane::bench
