#include "ops/dispatch/route.hpp"

#include <bit>

namespace mixlane {
namespace {

// The ranks that own a token's experts.
uint64_t ranks_of(const int32_t* ids, int64_t token, const DispatcherConfig& config, int rank, bool& bad_ids,
                  Status& status) {
  uint64_t ranks = 0;
  for (int k = 0; k < config.num_topk; ++k) {
    const int32_t id = ids[k];
    if (static_cast<uint32_t>(id) < static_cast<uint32_t>(config.num_experts)) {
      ranks |= uint64_t{1} << config.expert_rank[id];
    } else if (id != -1) {
      bad_ids = true;
      record(status,
             {.code = ErrorCode::bad_expert_id, .rank = rank, .token = token, .expected = config.num_experts, .got = id});
    }
  }
  return ranks;
}

}  // namespace

HostRouting::HostRouting(const DispatcherConfig& config, int num_ranks) {
  const auto tokens = static_cast<size_t>(config.max_tokens);
  const auto ranks = static_cast<size_t>(num_ranks);
  token_ranks.reserve(tokens);
  slots.reserve(tokens * std::min<size_t>(ranks, static_cast<size_t>(config.num_topk)));
  first_slot.reserve(tokens + 1);
  needed.resize(ranks);
  counts.sent.resize(ranks);
  counts.received.resize(ranks);
}

void route(const int32_t* ids, int64_t num_tokens, const DispatcherConfig& config, int rank, HostRouting& routing,
           Status& status) {
  const auto num_ranks = static_cast<int>(routing.needed.size());
  int64_t first_unsent[64];
  routing.token_ranks.clear();
  routing.slots.clear();
  routing.first_slot.assign(1, 0);
  routing.needed.assign(routing.needed.size(), 0);
  routing.bad_ids = false;
  for (int64_t t = 0; t < num_tokens; ++t) {
    uint64_t sent_to = 0;
    for (uint64_t left = ranks_of(ids + t * config.num_topk, t, config, rank, routing.bad_ids, status); left != 0;
         left &= left - 1) {
      const int to = std::countr_zero(left);
      const int32_t slot = routing.needed[to]++;
      if (slot < config.capacity) {
        routing.slots.push_back(slot);
        sent_to |= uint64_t{1} << to;
      } else if (slot == config.capacity) {
        first_unsent[to] = t;
      }
    }
    routing.token_ranks.push_back(sent_to);
    routing.first_slot.push_back(static_cast<int32_t>(routing.slots.size()));
  }
  for (int r = 0; r < num_ranks; ++r) {
    routing.counts.sent[r] = std::min(routing.needed[r], config.capacity);
    if (routing.needed[r] > config.capacity)
      record(status, {.code = ErrorCode::capacity_overflow,
                      .rank = rank,
                      .peer = r,
                      .failures = routing.needed[r] - config.capacity,
                      .token = first_unsent[r],
                      .expected = config.capacity,
                      .got = routing.needed[r]});
  }
}

}  // namespace mixlane
