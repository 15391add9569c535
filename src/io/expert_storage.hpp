// The memory of a set of experts in one of the formats, before and while it is filled.
#pragma once

#include "io/host_tensor.hpp"
#include "io/weights.hpp"

namespace mixlane {

// One matrix per expert: values [experts, rows, cols], scales as ExpertWeights says (empty without quantisation).
struct ExpertMatrices {
  QuantFormat format = QuantFormat::none;
  HostTensor values;
  HostTensor scales;

  int64_t rows() const { return values.view.shape[1]; }
  int64_t cols() const { return values.view.shape[2]; }
};

// Throws invalid_argument for a model with missing fields and for experts that it does not have.
void validate(const WeightsRequest& request);

ExpertMatrices make_expert_matrices(std::string_view what, QuantFormat format, int64_t num_experts, int64_t rows,
                                    int64_t cols);

// Expert `index` of a tensor [experts, ...]: the view without its first dimension.
TensorView expert_slice(const TensorView& tensor, int64_t index);

struct ExpertStorage {
  int hidden = 0;
  int intermediate = 0;
  ExpertMatrices gate_up;   // [experts, 2 I or I, H]
  ExpertMatrices down;      // [experts, H, I]
  HostTensor gate_up_bias;  // f32 [experts, 2 I or I], or empty
  HostTensor down_bias;     // f32 [experts, H], or empty

  // Views for MoeLayer; `keeper` receives the memory and its size.
  ExpertWeights hand_over(LayerWeights& keeper) const;
};

ExpertStorage make_expert_storage(std::string_view what, QuantFormat format, int num_experts, int hidden, int intermediate,
                                  bool gated, bool biased);

// `keeper` receives the tensor's memory and its size; nothing happens for an empty one.
ConstTensorView hand_over(const HostTensor& tensor, LayerWeights& keeper);

}  // namespace mixlane
