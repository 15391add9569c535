// The weights of a rank's experts on a GPU, for a stage at one size or at many.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "mixlane/experts.hpp"
#include "mixlane/weights.hpp"
#include "stage/device_tensor.hpp"
#include "stage/op_stage.hpp"

namespace mixlane::bench {

// Part `index` along the first dimension; nothing of nothing.
ConstTensorView part_of(ConstTensorView view, int64_t index);

// The experts of a rank: on the device all of them, on the host one at a time, for the reference.
class PlacedExperts {
 public:
  virtual ~PlacedExperts() = default;

  virtual const ExpertWeights& on_device() const = 0;
  virtual ExpertWeights on_host(int expert) = 0;
  // Experts of one number have the same weights.
  virtual int distinct_index(int expert) const { return expert; }
};

// Two experts are made, all others repeat these in turn: random values take their time.
class RandomExperts final : public PlacedExperts {
 public:
  RandomExperts(Context& cpu, Device device, const Model& model, QuantFormat format, int num_experts, uint64_t seed);

  const ExpertWeights& on_device() const override { return on_device_; }
  ExpertWeights on_host(int expert) override;
  int distinct_index(int expert) const override { return expert % made_.weights.experts.num_experts; }

 private:
  LayerWeights made_;
  std::array<DeviceTensor, 6> weights_;  // gate_up and down: values, scales, bias
  ExpertWeights on_device_;
};

// The stage of `setup` with weights that were placed for its model, format and number of local experts.
std::unique_ptr<OpStage<ExpertsArgs>> make_experts_stage(const StageSetup& setup, std::shared_ptr<PlacedExperts> experts);

}  // namespace mixlane::bench
