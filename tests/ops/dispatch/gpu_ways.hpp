// The ways through dispatch and combine on GPUs that have code of their own, to try each of them alike.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "ops/dispatch/gpu_rank.hpp"

namespace mixlane::test {

struct GpuWay {
  std::string name;
  std::string dispatch = "dispatch.latency";
  std::string combine = "combine.latency";
  int num_tokens = 6;  // about as many per rank
  CombineWire wire = CombineWire::bf16;
  bool reduced = false;  // combine gets a row in f32 per received row, not one per pair
  bool limited = false;  // in multiprocessors
  int num_ranks = 2;

  DispatcherConfig config() const;
  ReceivedRows run_dispatch(GpuRank& rank, const Inputs& inputs, const RoutingHandle& replay = {}) const;
  std::vector<uint16_t> run_combine(GpuRank& rank, const ReceivedRows& received, const Oracle& oracle) const;
  // Tokens of all ranks, a few more or fewer on some.
  std::vector<Inputs> inputs(uint64_t seed, bool holes) const;
};

// Those that the build has.
std::vector<GpuWay> gpu_ways();
// For messages of tests.
void PrintTo(const GpuWay& way, std::ostream* out);

}  // namespace mixlane::test
