// Which token goes to which ranks, in which slot of their windows.
#pragma once

#include <span>
#include <vector>

#include "core/error.hpp"
#include "ops/dispatch/op.hpp"

namespace mixlane {

// What dispatch leaves behind for combine and for a replay. A backend derives from it what it needs besides.
struct RoutingState {
  virtual ~RoutingState() = default;
  // Before `counts` is read by the host.
  virtual void fetch_counts() {}
  int64_t num_rows = 0;    // T of the arguments
  int64_t num_tokens = 0;  // those of them that count
  DispatchCounts counts;
};

// Slots in token order: a token takes the next slot of each rank that owns one of its experts, once per rank.
struct HostRouting final : RoutingState {
  std::vector<uint64_t> token_ranks;  // [num_tokens] bit r: a row goes to rank r
  std::vector<int32_t> slots;         // for each token its slots, ranks ascending
  std::vector<int32_t> first_slot;    // [num_tokens + 1] index in `slots`
  std::vector<int32_t> needed;        // [num_ranks] rows for each rank, those that found no room included
  bool bad_ids = false;

  // Memory for the largest call, so that calls allocate nothing.
  HostRouting(const DispatcherConfig& config, int num_ranks);
};

// ids: [num_tokens, K]. Reports bad_expert_id and capacity_overflow.
void route(const int32_t* ids, int64_t num_tokens, const DispatcherConfig& config, int rank, HostRouting& routing,
           Status& status);

}  // namespace mixlane
