// The model's routing of normal logits.
#pragma once

#include "mixlane/routing.hpp"
#include "stage/device_tensor.hpp"
#include "stage/op_stage.hpp"
#include "stage/routing_check.hpp"

namespace mixlane::bench {

class RoutingStage final : public OpStage<RoutingArgs> {
 public:
  struct Case {
    DType logits_type = DType::f32;
    DType id_type = DType::i32;
  };
  // num_sets 0: as many as cold samples want.
  RoutingStage(const StageSetup& setup, const Case& which, int num_sets = 0);

  std::string options() const override;
  int num_sets() const override { return num_sets_; }
  RoutingArgs args(int set) const override;
  void poison(Stream stream, int set) override;
  Correctness verify(Stream stream, int set) override;
  StageWork work() const override;

  // What it writes.
  const DeviceTensor& ids() const { return ids_; }
  static int64_t set_bytes(const StageInputs& inputs, DType logits_type);

 private:
  void encode_logits();
  ConstTensorView host_logits() const;
  void run_reference();

  StageInputs& inputs_;
  Case case_;
  int num_sets_;
  std::vector<std::byte> host_logits_;  // in the type of the case
  DeviceTensor logits_, bias_, ids_, weights_, zero_weights_, status_;
  RoutingAnswer expected_;
};

}  // namespace mixlane::bench
