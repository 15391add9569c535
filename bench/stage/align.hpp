// Align & sort of the workload's ids.
#pragma once

#include "mixlane/align.hpp"
#include "stage/device_tensor.hpp"
#include "stage/op_stage.hpp"

namespace mixlane::bench {

// What the engines ask for: sorted pairs, the expert of each block and the padded count.
class AlignStage final : public OpStage<AlignArgs> {
 public:
  struct Case {
    int block = 128;
    DType id_type = DType::i32;
  };
  AlignStage(const StageSetup& setup, const Case& which);
  // On the ids that another stage writes, i32 [T, K] per set.
  AlignStage(const StageSetup& setup, int block, const DeviceTensor& ids, int num_sets);

  std::string options() const override;
  int num_sets() const override { return num_sets_; }
  AlignArgs args(int set) const override;
  void poison(Stream stream, int set) override;
  Correctness verify(Stream stream, int set) override;
  StageWork work() const override;

 private:
  struct Result {
    std::vector<int32_t> pairs, blocks, num_padded;
  };
  int64_t num_pairs() const;
  int64_t capacity() const;
  int64_t set_bytes() const;
  void make_outputs();
  void run_reference(std::span<const int32_t> ids);

  StageInputs& inputs_;
  int block_;
  DType id_type_;
  int num_sets_ = 1;
  DeviceTensor own_ids_, pairs_, blocks_, num_padded_, status_;
  const DeviceTensor* ids_ = &own_ids_;
  Result expected_;
};

}  // namespace mixlane::bench
