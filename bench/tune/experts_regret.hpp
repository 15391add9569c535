// How far "auto" is from the best configuration of experts, over a sweep.
#pragma once

#include <string>
#include <vector>

#include "tune/experts_sweep.hpp"
#include "tune/regret.hpp"
#include "workload/workload.hpp"

namespace mixlane::bench {

struct ExpertsRegretPoint : Regret {
  std::string model;
  int num_ranks = 1;
  QuantFormat format = QuantFormat::none;
  Workload workload;
  int64_t tokens = 0;
};

// The sweep's models, formats and sizes with each of `workloads`.
std::vector<ExpertsRegretPoint> experts_regret(Context& context, const ExpertsSweep& sweep,
                                               const std::vector<Workload>& workloads, const TuneProgress& progress = {});
// Markdown: a row per model, format and workload, and the worst points.
std::string regret_text(const std::vector<ExpertsRegretPoint>& points);

}  // namespace mixlane::bench
