// Quantisation of the hidden rows.
#pragma once

#include "mixlane/quant.hpp"
#include "stage/device_tensor.hpp"
#include "stage/op_stage.hpp"

namespace mixlane::bench {

class QuantStage final : public OpStage<QuantArgs> {
 public:
  // num_sets 0: as many as cold samples want.
  QuantStage(const StageSetup& setup, ScaleGroup group, int num_sets = 0);

  std::string options() const override;
  int num_sets() const override { return num_sets_; }
  QuantArgs args(int set) const override;
  void poison(Stream stream, int set) override;
  Correctness verify(Stream stream, int set) override;
  StageWork work() const override;

  static int64_t set_bytes(const StageInputs& inputs);
  // Other stages run between and are not waited for (QuantArgs::independent_of_previous).
  void follow_independently() { independent_ = true; }

 private:
  void run_reference();

  StageInputs& inputs_;
  ScaleGroup group_;
  int num_sets_;
  bool independent_ = false;
  DeviceTensor hidden_, values_, scales_;
  std::vector<std::byte> expected_values_, expected_scales_;
};

}  // namespace mixlane::bench
