// Tuning dispatch and combine: which variant for how many tokens, on ranks that are threads of this process.
#pragma once

#include "ops/dispatch/choose.hpp"
#include "tune/measured.hpp"
#include "tune/options.hpp"

namespace mixlane::bench {

struct ExchangeSweep {
  int num_ranks = 2;
  std::vector<int> hidden;
  std::vector<int64_t> tokens;  // per rank, the buckets that have these; none: every bucket to kMaxTunedTokens
  int num_multiprocessors = 0;
  RaceOptions race;
};

// A table per stage. Measures every key of the sweep that more than one candidate takes, after checking their results, with
// rows of bf16 that go as they are and combine of reduced rows: what is timed is the stage alone in rounds of both
// (ExchangeRun) by the same way. Keys differ in `memory` as well: candidates that need more than the window stand only
// under "copies".
std::vector<TunedTable> tune_exchange(const std::vector<ExchangeStage>& stages, const TunedMachine& machine,
                                      const ExchangeSweep& sweep, const TuningRun& run, const TuneProgress& progress = {});

// `mixlane tune --stage dispatch`, combine, or both; the exit code.
int tune_exchange_stage(Context& context, const TuneOptions& options);

}  // namespace mixlane::bench
