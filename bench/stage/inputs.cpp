#include "stage/inputs.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "workload/random.hpp"

namespace mixlane::bench {
namespace {

constexpr int64_t kMaxBytes = int64_t{4} << 30;  // of one input
constexpr float kBiasSpread = 0.05f;

// A stage whose inputs would be larger is left out at this many tokens.
void require_affordable(const char* what, int64_t bytes, int tokens) {
  if (bytes > kMaxBytes)
    fail(ErrorCode::unsupported, "{} of {} tokens take {:.1f} GiB; at most {} GiB are made", what, tokens,
         static_cast<double>(bytes) / (1 << 30), kMaxBytes >> 30);
}

// Experts in equal runs, one per rank.
std::vector<int> expert_owners(int num_experts, int num_ranks) {
  std::vector<int> owners(static_cast<size_t>(num_experts));
  for (int e = 0; e < num_experts; ++e)
    owners[static_cast<size_t>(e)] = static_cast<int>(int64_t{e} * num_ranks / num_experts);
  return owners;
}

}  // namespace

StageInputs::StageInputs(const StageCell& cell, Context& cpu) : cell_(cell), cpu_(cpu) {
  request_.workload = cell.workload;
  request_.routing = cell.shape.routing;
  request_.expert_rank = expert_owners(cell.shape.routing.num_experts, cell.num_ranks);
  request_.tokens = std::min(cell.tokens, kDistinctTokens);
  request_.seed = cell.seed;
}

const std::vector<int32_t>& StageInputs::columns() {
  if (columns_.empty()) columns_ = assign_columns(request_);
  return columns_;
}

std::span<const int32_t> StageInputs::topk_ids() {
  if (!ids_.empty()) return ids_;
  const std::vector<int32_t>& meant = columns();
  ids_.resize(static_cast<size_t>(cell_.tokens) * static_cast<size_t>(cell_.shape.routing.num_topk));
  for (size_t p = 0; p < ids_.size(); ++p) {
    const int32_t column = meant[p % meant.size()];
    ids_[p] = column < cell_.shape.routing.num_experts ? column : -1;
  }
  return ids_;
}

std::span<const float> StageInputs::logits() {
  if (!logits_.empty()) return logits_;
  const auto width = static_cast<size_t>(num_columns());
  const auto num_topk = static_cast<size_t>(cell_.shape.routing.num_topk);
  require_affordable("logits", static_cast<int64_t>(width) * cell_.tokens * 4, cell_.tokens);
  const std::vector<int32_t>& meant = columns();
  logits_.resize(static_cast<size_t>(cell_.tokens) * width);
  parallel_ranges(cpu_.num_threads(), cell_.tokens, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const std::span<const int32_t> best(meant.data() + static_cast<size_t>(t % request_.tokens) * num_topk, num_topk);
      fill_normal_logits(request_, t, best, {logits_.data() + static_cast<size_t>(t) * width, width});
    }
  });
  return logits_;
}

std::span<const float> StageInputs::correction_bias() {
  if (!cell_.shape.correction_bias || !bias_.empty()) return bias_;
  Stream64 random(mix_bits(cell_.seed, 0xb1a5));
  for (int e = 0; e < num_columns(); ++e) bias_.push_back(kBiasSpread * (2 * random.uniform() - 1));
  return bias_;
}

std::span<const uint16_t> StageInputs::hidden() {
  if (!hidden_.empty()) return hidden_;
  const auto width = static_cast<size_t>(cell_.shape.hidden);
  require_affordable("hidden rows", static_cast<int64_t>(width) * cell_.tokens * 2, cell_.tokens);
  hidden_.resize(static_cast<size_t>(cell_.tokens) * width);
  parallel_ranges(cpu_.num_threads(), cell_.tokens, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      fill_hidden(cell_.seed, 0, t, {hidden_.data() + static_cast<size_t>(t) * width, width});
  });
  return hidden_;
}

std::vector<int64_t> StageInputs::expert_pairs() {
  std::vector<int64_t> pairs(static_cast<size_t>(cell_.shape.routing.num_experts));
  for (const int32_t id : topk_ids())
    if (id >= 0) ++pairs[static_cast<size_t>(id)];
  return pairs;
}

}  // namespace mixlane::bench
