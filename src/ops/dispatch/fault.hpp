// Faults that tests inject into a rank.
#pragma once

#include <string_view>

#include "ops/dispatch/stage.hpp"

namespace mixlane {

// What MIXLANE_FAULT says (src/core/env.hpp).
struct Fault {
  bool given = false;
  ExchangeStage stage = ExchangeStage::dispatch;
  int rank = 0;
  int64_t epoch = 0;      // counts the calls of the stage from 1
  int64_t stall_ms = -1;  // -1: SIGKILL instead
  bool flips = false;     // on GPUs, with MIXLANE_CHECK: a bit of a row instead
  int64_t jitter_us = 0;  // on GPUs: each block waits for up to so long before it sends and before it flags

  bool hits(ExchangeStage at, int at_rank, int64_t at_epoch) const {
    return given && stage == at && rank == at_rank && epoch == at_epoch;
  }
  void strike() const;
};

// Throws invalid_argument with the text and the right form. Empty: no fault.
Fault parse_fault(std::string_view text);

}  // namespace mixlane
