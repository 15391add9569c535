#include "io/expert_storage.hpp"

#include "core/math.hpp"
#include "ops/quant/formats.hpp"

namespace mixlane {
namespace {

OwnedTensor make_scales(const TensorMaker& make, std::string_view what, QuantFormat format, int64_t num_experts,
                        int64_t rows, int64_t cols) {
  switch (format) {
    case QuantFormat::none: return {};
    case QuantFormat::fp8_block: return make(what, DType::f32, {num_experts, ceil_div(rows, 128), ceil_div(cols, 128)});
    case QuantFormat::fp8_channel: return make(what, DType::f32, {num_experts, rows});
    case QuantFormat::mxfp4:
    case QuantFormat::mxfp4_fp8: return make(what, DType::e8m0, {num_experts, rows, ceil_div(cols, 32)});
  }
  return {};
}

int64_t matrix_bytes(QuantFormat format, int64_t rows, int64_t cols) {
  const int64_t values = size_bytes(weight_dtype(format), rows * cols);
  switch (format) {
    case QuantFormat::none: return values;
    case QuantFormat::fp8_block: return values + 4 * ceil_div(rows, 128) * ceil_div(cols, 128);
    case QuantFormat::fp8_channel: return values + 4 * rows;
    case QuantFormat::mxfp4:
    case QuantFormat::mxfp4_fp8: return values + rows * ceil_div(cols, 32);
  }
  return values;
}

}  // namespace

int64_t expert_weight_bytes(const Model& model, QuantFormat format, int64_t num_experts) {
  const auto of_one = [&](int64_t intermediate) {
    return matrix_bytes(format, (model.activation.gated() ? 2 : 1) * intermediate, model.hidden) +
           matrix_bytes(format, model.hidden, intermediate);
  };
  return num_experts * of_one(model.intermediate) + of_one(model.shared_intermediate);
}

void validate(const WeightsRequest& request) {
  const Model& model = request.model;
  if (!model.missing.empty())
    fail(ErrorCode::invalid_argument, "model {}: {} unknown; give a model file with the values", model.name,
         fmt::join(model.missing, ", "));
  for (const int expert : request.experts)
    if (expert < 0 || expert >= model.routing.num_experts)
      fail(ErrorCode::invalid_argument, "expert {} of model {}; it has 0..{}", expert, model.name,
           model.routing.num_experts - 1);
}

ExpertMatrices make_expert_matrices(const TensorMaker& make, std::string_view what, QuantFormat format, int64_t num_experts,
                                    int64_t rows, int64_t cols) {
  ExpertMatrices matrices;
  matrices.format = format;
  matrices.values = make(what, weight_dtype(format), {num_experts, rows, cols});
  matrices.scales = make_scales(make, what, format, num_experts, rows, cols);
  return matrices;
}

TensorView expert_slice(const TensorView& tensor, int64_t index) {
  TensorView slice;
  slice.dtype = tensor.dtype;
  slice.device = tensor.device;
  slice.ndim = tensor.ndim - 1;
  for (int d = 0; d < slice.ndim; ++d) {
    slice.shape[d] = tensor.shape[d + 1];
    slice.strides[d] = tensor.strides[d + 1];
  }
  slice.data = tensor.as<std::byte>() + size_bytes(tensor.dtype, tensor.strides[0] * index);
  return slice;
}

ConstTensorView hand_over(const OwnedTensor& tensor, LayerWeights& keeper) {
  if (!tensor.memory) return {};
  keeper.memory.push_back(tensor.memory);
  keeper.owned_bytes += tensor.bytes;
  return tensor.view;
}

ExpertWeights ExpertStorage::hand_over(LayerWeights& keeper) const {
  ExpertWeights weights;
  weights.format = gate_up.format;
  weights.num_experts = static_cast<int>(gate_up.values.view.shape[0]);
  weights.hidden = hidden;
  weights.intermediate = intermediate;
  weights.gate_up = mixlane::hand_over(gate_up.values, keeper);
  weights.gate_up_scales = mixlane::hand_over(gate_up.scales, keeper);
  weights.gate_up_bias = mixlane::hand_over(gate_up_bias, keeper);
  weights.down = mixlane::hand_over(down.values, keeper);
  weights.down_scales = mixlane::hand_over(down.scales, keeper);
  weights.down_bias = mixlane::hand_over(down_bias, keeper);
  return weights;
}

ExpertStorage make_expert_storage(const TensorMaker& make, std::string_view what, QuantFormat format,
                                  const ExpertShape& shape) {
  ExpertStorage storage;
  storage.hidden = shape.hidden;
  storage.intermediate = shape.intermediate;
  const int64_t gate_up_rows = shape.gated ? 2 * int64_t{shape.intermediate} : shape.intermediate;
  storage.gate_up = make_expert_matrices(make, what, format, shape.num_experts, gate_up_rows, shape.hidden);
  storage.down = make_expert_matrices(make, what, format, shape.num_experts, shape.hidden, shape.intermediate);
  if (shape.biased) {
    storage.gate_up_bias = make(what, DType::f32, {shape.num_experts, gate_up_rows});
    storage.down_bias = make(what, DType::f32, {shape.num_experts, shape.hidden});
  }
  return storage;
}

}  // namespace mixlane
