// Dispatch and combine at one token count under one workload, by all chosen ways, checked and then timed.
#pragma once

#include "run/console.hpp"
#include "run/options.hpp"

namespace mixlane::bench {

struct ExchangeCellRequest {
  const BenchOptions& options;
  QuantFormat format = QuantFormat::none;
  int tokens = 0;
  Workload workload;
  Context& cpu;
  const Peaks& peaks;
};

// Appends the rows of "dispatch", "combine" and "exchange" (a round of both) to `records`, which are those of
// `conditions`, and fills in what they say of the ranks. A way that does not take the case is left out with a line on the
// console. Throws internal for an output that differs from the CPU's; nothing is timed then.
void run_exchange_cell(const ExchangeCellRequest& request, const std::vector<TimerOptions>& conditions,
                       std::vector<Record>& records, Console& console);

}  // namespace mixlane::bench
