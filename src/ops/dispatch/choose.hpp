// What "auto" goes by on GPUs: tuned choices, and where there is none what is known of one machine.
#pragma once

#include "core/tuning.hpp"
#include "mixlane/dispatch.hpp"
#include "ops/dispatch/stage.hpp"

namespace mixlane {

inline constexpr TokenBuckets kExchangeBuckets{};

// Key: ranks, row_bytes (of a payload on the wire), multiprocessors (that a call may keep busy; 0 = all), memory ("window",
// or "copies" where DispatcherConfig::copy_engine is set), tokens (of this rank's call, as a bucket). Ranks may choose
// differently in one call: receivers can't tell the variants of a stage apart.
const TuneSpace& exchange_tune_space(ExchangeStage stage);
struct ExchangeKey {
  int num_ranks = 1;
  int64_t row_bytes = 0;
  int num_multiprocessors = 0;
  bool copy_engine = false;
  int64_t num_tokens = 0;
  PackedKey packed() const;
};

// Ids that tables may say, in the order of the variants' table.
std::vector<std::string_view> exchange_candidates(ExchangeStage stage);
// Of a context on a GPU.
StageTuning& exchange_tuning(const Context& context, ExchangeStage stage);
// The tuned choice, or empty.
std::string_view tuned_exchange(const Context& context, ExchangeStage stage, const ExchangeKey& key);

}  // namespace mixlane
