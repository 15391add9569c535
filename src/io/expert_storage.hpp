// The memory of a set of experts in one of the formats, before and while it is filled.
#pragma once

#include <functional>

#include "io/owned_tensor.hpp"
#include "mixlane/weights.hpp"

namespace mixlane {

// One matrix per expert: values [experts, rows, cols], scales as ExpertWeights says (empty without quantisation).
struct ExpertMatrices {
  QuantFormat format = QuantFormat::none;
  OwnedTensor values;
  OwnedTensor scales;

  int64_t rows() const { return values.view.shape[1]; }
  int64_t cols() const { return values.view.shape[2]; }
};

// Throws invalid_argument for a model with missing fields and for experts that it does not have.
void validate(const WeightsRequest& request);

// Makes a tensor in the memory that weights shall lie in.
using TensorMaker = std::function<OwnedTensor(std::string_view what, DType dtype, std::initializer_list<int64_t> shape)>;

ExpertMatrices make_expert_matrices(const TensorMaker& make, std::string_view what, QuantFormat format, int64_t num_experts,
                                    int64_t rows, int64_t cols);

// Expert `index` of a tensor [experts, ...]: the view without its first dimension.
TensorView expert_slice(const TensorView& tensor, int64_t index);

struct ExpertStorage {
  int hidden = 0;
  int intermediate = 0;
  ExpertMatrices gate_up;    // [experts, 2 I or I, H]
  ExpertMatrices down;       // [experts, H, I]
  OwnedTensor gate_up_bias;  // f32 [experts, 2 I or I], or empty
  OwnedTensor down_bias;     // f32 [experts, H], or empty

  // Views for MoeLayer; `keeper` receives the memory and its size.
  ExpertWeights hand_over(LayerWeights& keeper) const;
};

struct ExpertShape {
  int num_experts = 0;
  int hidden = 0;
  int intermediate = 0;
  bool gated = true;
  bool biased = false;
};
ExpertStorage make_expert_storage(const TensorMaker& make, std::string_view what, QuantFormat format,
                                  const ExpertShape& shape);

// `keeper` receives the tensor's memory and its size; nothing happens for an empty one.
ConstTensorView hand_over(const OwnedTensor& tensor, LayerWeights& keeper);

}  // namespace mixlane
