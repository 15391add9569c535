#include "ops/dispatch/cpu/fp8_partials.hpp"

#include <algorithm>

#include "ops/quant/row.hpp"

namespace mixlane {
namespace {

constexpr int64_t kGroup = 128;
constexpr int kMaxRows = 64;  // of one sum: ranks, or experts per token

const std::byte* value_at(const void* row, DType dtype, int64_t at) {
  return static_cast<const std::byte*>(row) + size_bytes(dtype, at);
}

}  // namespace

void sum_to_fp8(const RowSum& sum, DType row, const WindowLayout& layout) {
  const RowSumKernel kernel = row_sum_kernel(row, DType::f32);
  auto* const codes = static_cast<uint8_t*>(sum.out);
  auto* const scales = reinterpret_cast<float*>(codes + layout.partial_scales_at);
  const void* rows[kMaxRows];
  float values[kGroup];
  RowSum piece = sum;
  piece.rows = rows;
  piece.out = values;
  for (int64_t at = 0; at < sum.size; at += kGroup) {
    piece.size = std::min(kGroup, sum.size - at);
    for (int r = 0; r < sum.num_rows; ++r) rows[r] = value_at(sum.rows[r], row, at);
    kernel(piece);
    quant::quantize_row_e4m3(values, piece.size, kGroup, codes + at, scales + at / kGroup);
  }
}

void sum_of_fp8(const RowSum& sum, DType out, const WindowLayout& layout) {
  const RowSumKernel kernel = row_sum_kernel(DType::f32, out);
  float values[kMaxRows][kGroup];
  const void* rows[kMaxRows];
  for (int r = 0; r < sum.num_rows; ++r) rows[r] = values[r];
  RowSum piece = sum;
  piece.rows = rows;
  for (int64_t at = 0; at < sum.size; at += kGroup) {
    piece.size = std::min(kGroup, sum.size - at);
    for (int r = 0; r < sum.num_rows; ++r) {
      const auto* const codes = static_cast<const uint8_t*>(sum.rows[r]);
      const auto* const scales = reinterpret_cast<const float*>(codes + layout.partial_scales_at);
      quant::decode(codes + at, piece.size, DType::fp8_e4m3, values[r]);
      quant::multiply(values[r], piece.size, scales[at / kGroup]);
    }
    if (sum.addend != nullptr) piece.addend = value_at(sum.addend, sum.addend_dtype, at);
    piece.out = const_cast<std::byte*>(value_at(sum.out, out, at));
    kernel(piece);
  }
}

}  // namespace mixlane
