// Tuning experts: the choices for a sweep of keys.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "mixlane/model.hpp"
#include "stage/placed_experts.hpp"
#include "tune/measured.hpp"
#include "tune/options.hpp"

namespace mixlane::bench {

struct ExpertsSweep {
  std::vector<Model> models;
  std::vector<QuantFormat> formats;
  int num_ranks = 1;            // that share the experts: calls have those of one rank
  std::vector<int64_t> tokens;  // rows of a call; none: every bucket to 32768
  RaceOptions race;
};

inline constexpr uint64_t kTuneSeed = 1;

using PlacedExpertsBody = std::function<void(const Model&, QuantFormat, const std::shared_ptr<PlacedExperts>& experts)>;
// Calls `body` for each model and format with one rank's weights on the device.
void for_each_placed(Context& context, Context& cpu, const ExpertsSweep& sweep, const PlacedExpertsBody& body);

// Measures every key that more than one variant takes, with tokens that choose experts at random and weights that are not in
// L2, after checking each variant's rows against the CPU's; returns the choices. Throws internal for wrong rows.
TunedTable tune_experts(Context& context, const ExpertsSweep& sweep, const TuningRun& run,
                        const TuneProgress& progress = {});

// `mixlane tune --stage experts`; the exit code.
int tune_experts_stage(Context& context, const TuneOptions& options);

}  // namespace mixlane::bench
