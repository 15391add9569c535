#include "ops/dispatch/cpu/row_sum.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "core/numeric.hpp"
#include "core/simd.hpp"

namespace mixlane {
namespace {

// Values whose sums stay in registers while the rows go by.
constexpr int64_t kChunk = 64;

struct Bf16 {
  uint16_t bits;
};

[[gnu::always_inline]] inline float value(Bf16 x) { return bf16_to_f32(x.bits); }
[[gnu::always_inline]] inline float value(float x) { return x; }
[[gnu::always_inline]] inline double value(double x) { return x; }

[[gnu::always_inline]] inline void store(float sum, Bf16& out) {
  // f32_to_bf16 without a branch, so that the loop can be vectorised.
  const uint32_t bits = std::bit_cast<uint32_t>(sum);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const uint32_t quiet_nan = bits | 0x400000u;
  out.bits = static_cast<uint16_t>(((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded) >> 16);
}
[[gnu::always_inline]] inline void store(double sum, Bf16& out) { out.bits = f64_to_bf16(sum); }
[[gnu::always_inline]] inline void store(float sum, float& out) { out = sum; }
[[gnu::always_inline]] inline void store(double sum, float& out) { out = static_cast<float>(sum); }
[[gnu::always_inline]] inline void store(double sum, double& out) { out = sum; }

template <class Sum, class Row>
[[gnu::always_inline]] inline void add(Sum* sums, const void* row, Sum weight, int64_t at, int64_t count) {
  const Row* values = static_cast<const Row*>(row) + at;
  for (int64_t i = 0; i < count; ++i) sums[i] += weight * static_cast<Sum>(value(values[i]));
}

template <class Sum, class Row, class Out>
[[gnu::always_inline]] inline void sum_chunk(const RowSum& args, int64_t at, int64_t count) {
  Sum sums[kChunk] = {};
  for (int r = 0; r < args.num_rows; ++r)
    add<Sum, Row>(sums, args.rows[r], args.weights ? static_cast<Sum>(args.weights[r]) : Sum{1}, at, count);
  if (args.addend != nullptr) {
    if (args.addend_dtype == DType::bf16)
      add<Sum, Bf16>(sums, args.addend, Sum{1}, at, count);
    else
      add<Sum, float>(sums, args.addend, Sum{1}, at, count);
  }
  Out* const out = static_cast<Out*>(args.out) + at;
  for (int64_t i = 0; i < count; ++i) store(sums[i], out[i]);
}

template <class Sum, class Row, class Out>
[[gnu::always_inline]] inline void sum_rows(const RowSum& args) {
  int64_t at = 0;
  for (; at + kChunk <= args.size; at += kChunk) sum_chunk<Sum, Row, Out>(args, at, kChunk);
  if (at < args.size) sum_chunk<Sum, Row, Out>(args, at, args.size - at);
}

MIXLANE_CPU_LEVELS void bf16_to_bf16(const RowSum& args) { sum_rows<float, Bf16, Bf16>(args); }
MIXLANE_CPU_LEVELS void bf16_to_float(const RowSum& args) { sum_rows<float, Bf16, float>(args); }
MIXLANE_CPU_LEVELS void bf16_to_double(const RowSum& args) { sum_rows<double, Bf16, double>(args); }
MIXLANE_CPU_LEVELS void float_to_bf16(const RowSum& args) { sum_rows<float, float, Bf16>(args); }
MIXLANE_CPU_LEVELS void float_to_float(const RowSum& args) { sum_rows<float, float, float>(args); }
MIXLANE_CPU_LEVELS void float_to_double(const RowSum& args) { sum_rows<double, float, double>(args); }
MIXLANE_CPU_LEVELS void double_to_bf16(const RowSum& args) { sum_rows<double, double, Bf16>(args); }
MIXLANE_CPU_LEVELS void double_to_float(const RowSum& args) { sum_rows<double, double, float>(args); }

struct Kernel {
  DType row;
  DType out;
  RowSumKernel kernel;
};
constexpr Kernel kKernels[] = {
    {DType::bf16, DType::bf16, bf16_to_bf16},  {DType::bf16, DType::f32, bf16_to_float},
    {DType::bf16, DType::f64, bf16_to_double}, {DType::f32, DType::bf16, float_to_bf16},
    {DType::f32, DType::f32, float_to_float},  {DType::f32, DType::f64, float_to_double},
    {DType::f64, DType::bf16, double_to_bf16}, {DType::f64, DType::f32, double_to_float},
};

}  // namespace

RowSumKernel row_sum_kernel(DType row, DType out) {
  for (const Kernel& kernel : kKernels)
    if (kernel.row == row && kernel.out == out) return kernel.kernel;
  fail(ErrorCode::internal, "no sum of {} rows to {}", name(row), name(out));
}

}  // namespace mixlane
