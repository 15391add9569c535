// A sweep of stages alone on one GPU.
#pragma once

#include "run/options.hpp"

namespace mixlane::bench {

// The stages that can be measured alone, in the order of the data flow; none in a build without a GPU backend.
std::vector<std::string> stage_names();

// Returns the exit code. Throws what made it end.
int run_stage_sweep(const BenchOptions& options);

}  // namespace mixlane::bench
