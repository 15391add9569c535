// Checks of tensor arguments, shared by every stage's validate(): one wording for every wrong shape.
#pragma once

#include <initializer_list>

#include "core/error.hpp"

namespace mixlane {

inline constexpr int64_t kAnySize = -1;

// What an argument must look like. Throws invalid_argument with the argument's name, what it is and what it must be.
struct TensorRule {
  std::initializer_list<DType> dtypes;
  std::initializer_list<int64_t> shape;  // kAnySize where any will do
  bool strided_rows = false;             // the outer dimensions may have any stride; the innermost is always dense
};

void require_tensor(std::string_view argument, const ConstTensorView& view, const TensorRule& rule, Device device);
// The same for an argument that may be left out.
void require_tensor_if_given(std::string_view argument, const ConstTensorView& view, const TensorRule& rule, Device device);

}  // namespace mixlane
