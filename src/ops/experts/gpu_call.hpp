// What experts.mma and experts.wgmma have in common on the host: a call's arguments as plain pointers, and the matrices that
// its products read and write.
#pragma once

#include <string>

#include "core/arena.hpp"
#include "gpu/runtime.hpp"
#include "mixlane/experts.hpp"
#include "ops/experts/device_args.hpp"

namespace mixlane::experts_gpu {

Slots make_slots(const ExpertsArgs& args);
Floats<const float> floats_of(const ConstTensorView& view);
Rows<const std::byte> rows_of(const ConstTensorView& view);
Rows<std::byte> rows_of(const TensorView& view);

// Whether kernels may start before their predecessors have ended.
bool can_overlap(Device device);
// Why a call has more rows or slots than kernels count; empty if it has not.
std::string refuse_large(const ExpertsArgs& args);
// No experts or no slots: no products.
bool is_empty(const ExpertsArgs& args);
// With pair_slots, else nothing: the output's sums of rows per pair, bf16 [slots, H]; of a call that is empty from none.
void sum_pairs(const Context& context, const ExpertsArgs& args, const ConstTensorView& pair_rows, Stream stream);

// The input rows in the form that gate_up gathers: as they came, or times their pairs' weights, or quantised.
struct InputRows {
  ConstTensorView rows, scales;
  int num_topk = 1;
  ConstTensorView weights;  // what is left to be multiplied with
};

// Of a call that is not empty: prepares its input rows and holds what lies between the products, in the context's arena.
class Matrices {
 public:
  // `raw`: gate_up writes f32, which quantise_sums() makes into activated rows; else it writes these itself. `more_bytes`:
  // what the caller takes from the arena besides.
  Matrices(Context& context, const ExpertsArgs& args, bool raw, int64_t more_bytes, Stream stream);

  const InputRows& input() const { return input_; }
  const TensorView& gate_up_output() const { return raw_ ? sums_ : activated_; }
  void quantise_sums(Stream stream) const;
  // [slots, I], bf16 or e4m3, and the scales of the latter.
  const TensorView& activated() const { return activated_; }
  const TensorView& scales() const { return scales_; }
  // bf16 [slots, H]: the call's output, or what its sums are of.
  const TensorView& output() const { return output_; }

 private:
  TensorView take(DType dtype, int64_t rows, int64_t cols);
  TensorView take_scales(int64_t rows, int64_t cols);
  void scale_by_weights(Stream stream);
  void prepare_input(Stream stream);

  Context& context_;
  const ExpertsArgs& args_;
  const bool raw_;
  const gpu::DeviceGuard guard_;
  const Arena::Scope scope_;
  InputRows input_;
  TensorView sums_, activated_, scales_, output_;
};

}  // namespace mixlane::experts_gpu
