// A whole sweep on one rank.
#pragma once

#include "run/options.hpp"

namespace mixlane::bench {

// Collective: every rank of the group this process was started into calls it. Rank 0 talks to the user and writes the
// files; the other ranks measure. Returns the exit code; throws Error or PeerFailed.
int run_sweep(const BenchOptions& options);

}  // namespace mixlane::bench
