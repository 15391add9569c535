// One cell of a stage sweep: every chosen stage and variant at one token count under one workload, checked and then timed,
// under every mode and cache state.
#pragma once

#include "run/console.hpp"
#include "run/options.hpp"
#include "stage/kernel_times.hpp"
#include "stage/stage.hpp"

namespace mixlane::bench {

struct StageCellRequest {
  const BenchOptions& options;
  StageInputs& inputs;
  Context& context;  // of the device
  DeviceTimer& timer;
  const Peaks& peaks;
  KernelProfiler* profiler = nullptr;                // nullptr: no kernel times
  std::shared_ptr<PlacedExperts> experts = nullptr;  // as in StageSetup
};

// A record per mode x cache, in the order of the options. What a stage or variant does not take is left out with a line on
// the console. Throws internal for an output that differs from the CPU's; nothing of that stage is timed then.
std::vector<Record> run_stage_cell(const StageCellRequest& request, Console& console);

}  // namespace mixlane::bench
