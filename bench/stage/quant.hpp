// Quantisation of the hidden rows.
#pragma once

#include "mixlane/quant.hpp"
#include "stage/device_tensor.hpp"
#include "stage/op_stage.hpp"

namespace mixlane::bench {

// A form of quantisation, and of its inverse.
struct QuantCase {
  ScaleGroup group = ScaleGroup::group_1x128;
  DType type = DType::bf16;       // of the values that are quantised or come back
  bool scales_by_column = false;  // scales below each other are neighbours in memory

  DType code_type() const;
  DType scale_type() const;
  // "group=1x128", and what is not the usual.
  std::string text() const;
  // Of a [rows, cols] matrix, values and codes.
  int64_t set_bytes(int64_t rows, int64_t cols) const;
  int64_t num_scales(int64_t rows, int64_t cols) const;
  // Those scales, at `data`.
  TensorView scales(void* data, int64_t rows, int64_t cols, Device device) const;
};

// One per combination of the options.
std::vector<QuantCase> quant_cases(const StageSetup& setup);
// The hidden rows as values of `type`, in host memory.
std::vector<std::byte> encoded_rows(StageInputs& inputs, DType type);

// A call of quantisation or of its inverse with its tensors in the CPU's memory.
template <class Args>
Args on_host(Args args, const std::byte* input, std::byte* output, decltype(args.scales.data) scales, Device cpu) {
  args.input.data = input;
  args.output.data = output;
  args.scales.data = scales;
  args.input.device = args.output.device = args.scales.device = cpu;
  return args;
}

class QuantStage final : public OpStage<QuantArgs> {
 public:
  // num_sets 0: as many as cold samples want.
  QuantStage(const StageSetup& setup, const QuantCase& which, int num_sets = 0);

  std::string options() const override { return case_.text(); }
  int num_sets() const override { return num_sets_; }
  QuantArgs args(int set) const override;
  void poison(Stream stream, int set) override;
  Correctness verify(Stream stream, int set) override;
  StageWork work() const override;

  // Other stages run between and are not waited for (QuantArgs::independent_of_previous).
  void follow_independently() { independent_ = true; }

 private:
  void run_reference();

  StageInputs& inputs_;
  QuantCase case_;
  int num_sets_;
  bool independent_ = false;
  std::vector<std::byte> host_rows_;
  DeviceTensor rows_, codes_, scales_;
  std::vector<std::byte> expected_codes_, expected_scales_;
};

}  // namespace mixlane::bench
