// One call of experts: what can serve it, whether that is right, and how long it takes.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/tuning.hpp"
#include "measure/device_timer.hpp"
#include "stage/placed_experts.hpp"
#include "tune/race.hpp"

namespace mixlane::bench {

class ExpertsCase {
 public:
  // `experts`: placed for the model, the format and the local experts of `inputs`. All must outlive this.
  ExpertsCase(Context& context, StageInputs& inputs, std::shared_ptr<PlacedExperts> experts);

  // Simpler ones first, without those that the model expects to take kHopeless times what the best one takes.
  static constexpr double kHopeless = 3;
  const std::vector<std::string>& candidates() const { return candidates_; }
  // The key of the call.
  PackedKey key() const;
  // What "auto" takes, and what it would take without a table.
  std::string chosen() const { return stage_->automatic(); }
  const std::string& modelled() const { return modelled_; }

  // Holds the rows of each candidate against the CPU's. Throws internal for wrong ones.
  void check(Stream stream) const;
  // Weights are not in L2.
  RaceResult measure(DeviceTimer& timer, const RaceOptions& options) const;

 private:
  int tokens_;
  StageOptions options_;
  std::unique_ptr<OpStage<ExpertsArgs>> stage_;
  std::vector<std::string> candidates_;
  std::string modelled_;
};

}  // namespace mixlane::bench
