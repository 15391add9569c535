// The weights of a rank's experts on a GPU, for a stage at one size or at many.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "io/weights.hpp"
#include "mixlane/experts.hpp"
#include "stage/device_tensor.hpp"
#include "stage/op_stage.hpp"

namespace mixlane::bench {

// Part `index` along the first dimension; nothing of nothing.
ConstTensorView part_of(ConstTensorView view, int64_t index);

// Two experts are made, all others repeat these in turn: random values take their time.
class PlacedExperts {
 public:
  PlacedExperts(Context& cpu, Device device, const Model& model, QuantFormat format, int num_experts, uint64_t seed);

  const ExpertWeights& on_device() const { return on_device_; }
  // Which of those made an expert repeats.
  int made_index(int expert) const { return expert % made_.weights.experts.num_experts; }
  // What experts.reference makes of one row, with its scales if the format wants them.
  std::vector<double> expected_row(Context& cpu, int expert, const ConstTensorView& row,
                                   const ConstTensorView& scales) const;

 private:
  Activation activation_;
  LayerWeights made_;
  std::array<DeviceTensor, 6> weights_;  // gate_up and down: values, scales, bias
  ExpertWeights on_device_;
};

// The stage of `setup` with weights that were placed for its model, format and number of local experts.
std::unique_ptr<OpStage<ExpertsArgs>> make_experts_stage(const StageSetup& setup,
                                                         std::shared_ptr<const PlacedExperts> experts);

}  // namespace mixlane::bench
