// A tensor that owns its memory.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <span>

#include "core/error.hpp"

namespace mixlane {

struct OwnedTensor {
  TensorView view;  // empty if nothing was made; it says on which device
  std::shared_ptr<void> memory;
  int64_t bytes = 0;
};

// A contiguous tensor of at most kMaxDims dimensions in host memory, with undefined content, aligned for vector loads.
// Throws out_of_memory naming `what` and its size.
inline OwnedTensor make_host_tensor(std::string_view what, DType dtype, std::span<const int64_t> shape) {
  constexpr int64_t kAlignment = 64;
  OwnedTensor tensor;
  tensor.view = TensorView(nullptr, dtype, {});
  tensor.view.ndim = static_cast<int32_t>(shape.size());
  int64_t stride = 1;
  for (size_t d = shape.size(); d-- > 0; stride *= shape[d]) {
    tensor.view.shape[d] = shape[d];
    tensor.view.strides[d] = stride;
  }
  tensor.bytes = size_bytes(dtype, tensor.view.num_values());
  const int64_t rounded = std::max<int64_t>((tensor.bytes + kAlignment - 1) / kAlignment, 1) * kAlignment;
  tensor.memory.reset(std::aligned_alloc(kAlignment, static_cast<size_t>(rounded)), std::free);
  if (!tensor.memory) fail(ErrorCode::out_of_memory, "no {} bytes for {}, {}", tensor.bytes, what, to_string(tensor.view));
  tensor.view.data = tensor.memory.get();
  return tensor;
}

inline OwnedTensor make_host_tensor(std::string_view what, DType dtype, std::initializer_list<int64_t> shape) {
  return make_host_tensor(what, dtype, std::span(shape.begin(), shape.size()));
}

}  // namespace mixlane
