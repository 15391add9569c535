#include "core/check.hpp"

#include <algorithm>
#include <string>

namespace mixlane {
namespace {

std::string describe(const TensorRule& rule, Device device) {
  std::string text;
  for (const DType dtype : rule.dtypes) text += fmt::format("{}{}", text.empty() ? "" : "|", name(dtype));
  std::string shape;
  for (const int64_t size : rule.shape)
    shape += fmt::format("{}{}", shape.empty() ? "" : ", ", size == kAnySize ? "*" : std::to_string(size));
  return fmt::format("{} [{}] on {}{}", text, shape, name(device.type),
                     rule.strided_rows ? ", rows may be strided" : ", dense");
}

bool matches(const ConstTensorView& view, const TensorRule& rule, Device device) {
  if (!(view.device == device)) return false;
  if (std::find(rule.dtypes.begin(), rule.dtypes.end(), view.dtype) == rule.dtypes.end()) return false;
  if (view.ndim != static_cast<int>(rule.shape.size())) return false;
  for (int d = 0; d < view.ndim; ++d)
    if (rule.shape.begin()[d] != kAnySize && rule.shape.begin()[d] != view.shape[d]) return false;
  if (view.num_values() == 0) return true;
  if (view.data == nullptr) return false;
  if (!rule.strided_rows) return view.contiguous();
  return view.ndim == 0 || view.shape[view.ndim - 1] == 1 || view.strides[view.ndim - 1] == 1;
}

}  // namespace

void require_tensor(std::string_view argument, const ConstTensorView& view, const TensorRule& rule, Device device) {
  if (!view.given()) fail(ErrorCode::invalid_argument, "{} is required: {}", argument, describe(rule, device));
  if (!matches(view, rule, device))
    fail(ErrorCode::invalid_argument, "{} is {}{}; it must be {}", argument, to_string(view),
         view.data == nullptr && view.num_values() > 0 ? " without memory" : "", describe(rule, device));
}

void require_tensor_if_given(std::string_view argument, const ConstTensorView& view, const TensorRule& rule, Device device) {
  if (view.given()) require_tensor(argument, view, rule, device);
}

}  // namespace mixlane
