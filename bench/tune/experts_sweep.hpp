// Tuning experts: the choices for a sweep of keys.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/tuned_table.hpp"
#include "mixlane/model.hpp"
#include "tune/options.hpp"
#include "tune/race.hpp"

namespace mixlane::bench {

struct ExpertsSweep {
  std::vector<Model> models;
  std::vector<QuantFormat> formats;
  int num_ranks = 1;            // that share the experts: calls have those of one rank
  std::vector<int64_t> tokens;  // rows of a call; none: every bucket to 8192
  RaceOptions race;
};

// Measures every key that more than one variant takes, with tokens that choose experts at random and weights that are not in
// L2, after checking each variant's rows against the CPU's; returns the choices. Throws internal for wrong rows.
TunedTable tune_experts(Context& context, const ExpertsSweep& sweep, const TuningRun& run,
                        const std::function<void(const std::string& line)>& progress = {});

// `mixlane tune --stage experts`; the exit code.
int tune_experts_stage(Context& context, const TuneOptions& options);

}  // namespace mixlane::bench
