// Timing something that all ranks do at once.
#pragma once

#include <functional>
#include <string>

#include "mixlane/comm.hpp"

namespace mixlane::bench {

// Repeats `work(repetition)` on all ranks for about `seconds` and at least four times, each time from a barrier; a
// repetition lasts from the first rank's start to the last one's end. Returns amount / seconds of the fastest, the same on
// every rank. `work` must not throw.
double best_rate(Communicator& comm, double seconds, double amount, const std::function<void(int)>& work);

// Collective: the first rank's non-empty text, so that all ranks take the same way when one of them can't go on.
std::string first_problem(Communicator& comm, const std::string& problem);

}  // namespace mixlane::bench
