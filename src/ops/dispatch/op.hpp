// The inside of dispatch and combine: what they moved, and the tables of variants. The contract is in mixlane/dispatch.hpp.
#pragma once

#include <vector>

#include "core/registry.hpp"
#include "mixlane/dispatch.hpp"

namespace mixlane {

// Rows of one dispatch per peer, the own rank included.
struct DispatchCounts {
  std::vector<int32_t> sent;
  std::vector<int32_t> received;
};
// Throws invalid_argument for an empty handle.
const DispatchCounts& counts(const RoutingHandle& handle);

// Bytes of one rank's half of an exchange.
struct ExchangeCost {
  int64_t bytes = 0;          // read and written in memory, every byte once
  int64_t logical_bytes = 0;  // received, the own rank's rows included
  int64_t remote_bytes = 0;   // received from other ranks
};
// bytes = num_tokens * (input row + ids and weights) + sent rows * record; a record is payload, scales, ids and weights.
ExchangeCost dispatch_cost(const DispatcherConfig& config, const DispatchCounts& counts, int rank, int64_t num_tokens,
                           DType input);

struct CombineShape {
  int64_t num_tokens = 0;
  int64_t num_rows = 0;  // rows read: local pairs, or received rows if they are reduced already
  DType row = DType::bf16;
  DType output = DType::bf16;
  int64_t addend_row_bytes = 0;
};
// bytes = rows read + partial rows written for others + partial rows read + addend + output. What is received here are
// the partial rows.
ExchangeCost combine_cost(const DispatcherConfig& config, const DispatchCounts& counts, int rank, const CombineShape& shape);

std::vector<VariantInfo> dispatch_variants();
std::vector<VariantInfo> combine_variants();

}  // namespace mixlane
