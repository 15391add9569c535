// What tests of ranks that stop, are late or never come have in common.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>

#include "ops/dispatch/gpu_rank.hpp"

namespace mixlane::test {

// MIXLANE_FAULT for the ranks that are made meanwhile.
class FaultScope {
 public:
  explicit FaultScope(const char* fault) { setenv("MIXLANE_FAULT", fault, 1); }
  ~FaultScope() { unsetenv("MIXLANE_FAULT"); }
  FaultScope(const FaultScope&) = delete;
  FaultScope& operator=(const FaultScope&) = delete;
};

inline DispatcherConfig masking(DispatcherConfig config) {
  config.on_peer_timeout = OnPeerTimeout::mask;
  return config;
}

// Rounds 0 to num_rounds - 1 of a rank that stays in a group that masks, `round(number, masked)` each, where `masked` is for
// the oracle. Rank `absent` is not there from round `since` on: that one names it, and the later ones go on without a word.
template <class Round>
void play_without(GpuRank& gpu_rank, int absent, uint64_t since, uint64_t num_rounds, Round&& round) {
  for (uint64_t number = 0; number < num_rounds; ++number) {
    round(number, number < since ? 0u : 1u << absent);
    const Status status = gpu_rank.take_status();
    EXPECT_EQ(status.code, number == since ? ErrorCode::peer_timeout : ErrorCode::ok)
        << "round " << number << ": " << describe(status);
    EXPECT_EQ(status.peer, number == since ? absent : -1) << "round " << number;
  }
}

}  // namespace mixlane::test
