// Random weights of a rank's experts on a GPU, for a stage at one size or at many.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "mixlane/weights.hpp"
#include "stage/device_tensor.hpp"
#include "stage/op_stage.hpp"
#include "stage/stage_experts.hpp"

namespace mixlane::bench {

// Part `index` along the first dimension; nothing of nothing.
ConstTensorView part_of(ConstTensorView view, int64_t index);

// Two experts are made, all others repeat these in turn: random values take their time.
class PlacedExperts final : public StageExperts {
 public:
  PlacedExperts(Context& cpu, Device device, const Model& model, QuantFormat format, int num_experts, uint64_t seed);

  const ExpertWeights& on_device() const override { return on_device_; }
  const ExpertWeights& on_host(int expert) override { return on_host_[static_cast<size_t>(expert) % on_host_.size()]; }

 private:
  LayerWeights made_;
  std::vector<ExpertWeights> on_host_;   // of each that is made
  std::array<DeviceTensor, 6> weights_;  // gate_up and down: values, scales, bias
  ExpertWeights on_device_;
};

// The stage of `setup` with experts of its model, format and number of local ones.
std::unique_ptr<OpStage<ExpertsArgs>> make_experts_stage(const StageSetup& setup, std::shared_ptr<StageExperts> experts);

}  // namespace mixlane::bench
