#include <algorithm>
#include <array>

#include "core/error.hpp"

namespace mixlane {
namespace {

struct DTypeInfo {
  DType dtype;
  std::string_view name;
  int bits;
};

constexpr std::array<DTypeInfo, 10> kDTypes{{{DType::f32, "f32", 32},
                                             {DType::f64, "f64", 64},
                                             {DType::bf16, "bf16", 16},
                                             {DType::f16, "f16", 16},
                                             {DType::i32, "i32", 32},
                                             {DType::i64, "i64", 64},
                                             {DType::u8, "u8", 8},
                                             {DType::fp8_e4m3, "fp8_e4m3", 8},
                                             {DType::fp4_e2m1, "fp4_e2m1", 4},
                                             {DType::e8m0, "e8m0", 8}}};

const DTypeInfo& info(DType dtype) { return kDTypes.at(static_cast<size_t>(dtype)); }

std::string list(const std::array<int64_t, kMaxDims>& values, int count) {
  return fmt::format("[{}]", fmt::join(values.begin(), values.begin() + count, ", "));
}

}  // namespace

std::string_view name(DType dtype) { return info(dtype).name; }

int bits(DType dtype) { return info(dtype).bits; }

DType dtype_from_name(std::string_view text) {
  for (const DTypeInfo& candidate : kDTypes)
    if (candidate.name == text) return candidate.dtype;
  std::string valid;
  for (const DTypeInfo& candidate : kDTypes) valid += fmt::format("{}{}", valid.empty() ? "" : ", ", candidate.name);
  fail(ErrorCode::invalid_argument, "unknown dtype '{}'; valid ones: {}", text, valid);
}

int64_t size_bytes(DType dtype, int64_t count) {
  const int64_t total_bits = count * bits(dtype);
  if (total_bits % 8 != 0)
    fail(ErrorCode::invalid_argument, "{} values of {} do not fill whole bytes; use an even count", count, name(dtype));
  return total_bits / 8;
}

std::string_view name(DeviceType type) {
  switch (type) {
    case DeviceType::cpu: return "cpu";
    case DeviceType::cuda: return "cuda";
    case DeviceType::hip: return "hip";
  }
  return "unknown";
}

std::string to_string(const ConstTensorView& view) {
  if (!view.given()) return "(not given)";
  std::string text = fmt::format("{}{}", name(view.dtype), list(view.shape, view.ndim));
  if (!view.contiguous()) text += fmt::format(" strides {}", list(view.strides, view.ndim));
  text += fmt::format(" on {}", name(view.device.type));
  if (view.device.type != DeviceType::cpu) text += fmt::format(":{}", view.device.index);
  return text;
}

}  // namespace mixlane
