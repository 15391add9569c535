// One cell of a sweep: one token count under one workload, checked and then timed.
#pragma once

#include "measure/gate.hpp"
#include "measure/sampler.hpp"
#include "results/record.hpp"
#include "run/console.hpp"
#include "run/rig.hpp"
#include "run/tokens.hpp"
#include "run/variants.hpp"

namespace mixlane::bench {

struct CellRequest {
  int tokens = 0;
  std::string workload;
  const TokenSource& source;
  const SamplePlan& plan;
  const Peaks& peaks;
};

// Complete on rank 0. Not timed if the correctness check failed.
struct CellResult {
  Record record;
  SampleSet samples;
};

// Collective.
CellResult run_cell(Rig& rig, Gate& gate, Console& console, const CellRequest& request);

// Mailbox bytes that it needs of the gate.
int64_t cell_mailbox_bytes(const Model& shape);

}  // namespace mixlane::bench
