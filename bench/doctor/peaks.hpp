// What this machine can do, measured: the denominators of the speed-of-light column. docs/doctor.md says what each is.
#pragma once

#include "mixlane/comm.hpp"
#include "results/record.hpp"

namespace mixlane::bench {

struct PeakOptions {
  double seconds = 1.2;                        // of measuring, for all peaks together
  int64_t machine_bytes = int64_t{256} << 20;  // that the ranks read or move in one repetition, together
};

// Collective: all ranks work at once, each with its context's threads; the peaks are totals of the machine, the best of
// several repetitions, and equal on every rank. What can't be measured is 0 and has its reason in `skipped`.
Peaks measure_peaks(Communicator& comm, Context& context, const PeakOptions& options = {});

}  // namespace mixlane::bench
