#include "ops/experts/cpu/few_rows.hpp"

#include <algorithm>
#include <type_traits>

#include "core/numeric.hpp"
#include "core/simd.hpp"
#include "ops/experts/cpu/lanes.hpp"

namespace mixlane {
namespace {

struct Call {
  const MatrixView& matrix;
  int64_t first, count;
  const float* x;  // [R, padded cols]
  int64_t x_stride;
  const float* scales;  // [rows, groups] of the left operand
  int64_t rows;
  float* c;
  int64_t ldc;
};

// The rows that come next, into the second-level cache: the processor's own prefetching stops at each page, and a row is
// about a page; in the first level they would displace the rows in use.
[[gnu::always_inline]] static inline void prefetch_next(const uint8_t* row) { __builtin_prefetch(row, 0, 2); }

// One step of N matrix rows and R rows of x: sums[n][r] += w[n] * x[r].
template <class Decoder, int R, int N>
[[gnu::always_inline]] static inline void multiply_step(const U32x16 (&words)[N], const float* x, int64_t x_stride,
                                                        F32x16 (&sums)[N][R]) {
  for (int v = 0; v < Decoder::kVectors; ++v) {
    F32x16 w[N];
    for (int n = 0; n < N; ++n) Decoder::decode(words[n], v, w[n]);
    for (int r = 0; r < R; ++r) {
      F32x16 value;
      std::memcpy(&value, x + r * x_stride + v * kLanes, sizeof(value));
      for (int n = 0; n < N; ++n) sums[n][r] += w[n] * value;
    }
  }
}

[[gnu::always_inline]] static inline float sum_of(const F32x16& lanes) {
  float sum = 0;
  for (int l = 0; l < kLanes; ++l) sum += lanes[l];
  return sum;
}

// N matrix rows from n on: a scale per group of the reduction, applied to the group's sums.
template <class Decoder, int R, int N>
[[gnu::always_inline]] static inline void scaled_columns(const Call& call, int64_t n) {
  const MatrixView& m = call.matrix;
  const int64_t group = group_size(m.format, m.cols), groups = num_groups(m.format, m.cols);
  F32x16 totals[N][R] = {};
  for (int64_t g = 0; g < groups; ++g) {
    F32x16 sums[N][R] = {};
    const int64_t end = std::min(m.cols, (g + 1) * group);
    for (int64_t k = g * group; k < end; k += Decoder::kStep) {
      U32x16 words[N];
      const int64_t bytes = std::min(Decoder::kStep, end - k) * kStepBytes / Decoder::kStep;
      for (int i = 0; i < N; ++i) {
        const uint8_t* from = m.row(n + i) + k * kStepBytes / Decoder::kStep;
        prefetch_next(from + N * m.row_bytes);
        load_words(from, bytes, words[i]);
      }
      multiply_step<Decoder, R, N>(words, call.x + k, call.x_stride, sums);
    }
    for (int i = 0; i < N; ++i)
      for (int r = 0; r < std::min<int64_t>(R, call.rows); ++r)
        totals[i][r] += sums[i][r] * (call.scales[r * groups + g] * weight_scale(m, n + i, g));
  }
  for (int i = 0; i < N; ++i)
    for (int r = 0; r < std::min<int64_t>(R, call.rows); ++r)
      call.c[r * call.ldc + n + i - call.first] = sum_of(totals[i][r]);
}

// The same for e2m1: four words of a step share a power of two. A step is a group of the left operand's scales, if it has
// some.
template <int R, int N>
[[gnu::always_inline]] static inline void mx_columns(const Call& call, int64_t n) {
  using Decoder = E2m1Decoder;
  const MatrixView& m = call.matrix;
  static_assert(Decoder::kStep == kScaleBlock);
  const int64_t groups = num_groups(m.format, m.cols);
  F32x16 totals[N][R] = {};
  for (int64_t k = 0; k < m.cols; k += Decoder::kStep) {
    const int64_t step = std::min(Decoder::kStep, m.cols - k);
    U32x16 words[N];
    F32x16 sums[N][R] = {};
    for (int i = 0; i < N; ++i) {
      const uint8_t* from = m.row(n + i) + k / 2;
      prefetch_next(from + N * m.row_bytes);
      load_words(from, step / 2, words[i]);
    }
    multiply_step<Decoder, R, N>(words, call.x + k, call.x_stride, sums);
    for (int i = 0; i < N; ++i) {
      F32x16 factors;
      Decoder::load_factors(m.mx_scales(n + i) + k / kMxGroup, ceil_div(step, kMxGroup), factors);
      if (!has_groups(m.format)) {
        for (int r = 0; r < R; ++r) totals[i][r] += sums[i][r] * factors;
      } else {
        for (int r = 0; r < std::min<int64_t>(R, call.rows); ++r)
          totals[i][r] += sums[i][r] * factors * call.scales[r * groups + k / kScaleBlock];
      }
    }
  }
  for (int i = 0; i < N; ++i)
    for (int r = 0; r < std::min<int64_t>(R, call.rows); ++r)
      call.c[r * call.ldc + n + i - call.first] = sum_of(totals[i][r]);
}

template <class Decoder, int R, int N>
[[gnu::always_inline]] static inline void columns(const Call& call, int64_t n) {
  if constexpr (std::is_same_v<Decoder, E2m1Decoder>)
    mx_columns<R, N>(call, n);
  else
    scaled_columns<Decoder, R, N>(call, n);
}

template <class Decoder, int R>
[[gnu::always_inline]] static inline void all_columns(const Call& call) {
  constexpr int kTogether = R <= 2 ? 4 : 2;  // matrix rows that share the loads of x, within 32 registers
  int64_t n = call.first;
  const int64_t end = call.first + call.count;
  for (; n + kTogether <= end; n += kTogether) columns<Decoder, R, kTogether>(call, n);
  for (; n < end; ++n) columns<Decoder, R, 1>(call, n);
}

template <class Decoder>
[[gnu::always_inline]] static inline void any_rows(const Call& call) {
  if (call.rows == 1) return all_columns<Decoder, 1>(call);
  if (call.rows == 2) return all_columns<Decoder, 2>(call);
  static_assert(kFewRows == 4);
  all_columns<Decoder, 4>(call);
}

MIXLANE_CPU_LEVELS void product_bf16(const Call& call) { any_rows<Bf16Decoder>(call); }
MIXLANE_CPU_LEVELS void product_e4m3(const Call& call) { any_rows<E4m3Decoder>(call); }
MIXLANE_CPU_LEVELS void product_mxfp4(const Call& call) { any_rows<E2m1Decoder>(call); }

int64_t padded(int64_t cols) { return ceil_div(cols, kMaxStep) * kMaxStep; }

// x in f32, in the decoder's order; zeros behind the end and for rows that are not there.
template <class Decoder>
void widen(const OperandRows& a, float* x) {
  const int64_t stride = padded(a.cols);
  std::fill_n(x, kFewRows * stride, 0.0f);
  for (int64_t r = 0; r < a.rows; ++r)
    for (int64_t i = 0; i < a.cols; ++i) x[r * stride + lane_position<Decoder>(i)] = bf16_to_f32(a.values[r * a.cols + i]);
}

}  // namespace

int64_t few_rows_scratch(int64_t cols) { return kFewRows * padded(cols); }

void few_rows_product(const MatrixView& matrix, int64_t first, int64_t count, const OperandRows& a, float* c, int64_t ldc,
                      float* scratch) {
  const Call call{matrix, first, count, scratch, padded(a.cols), a.scales, a.rows, c, ldc};
  switch (matrix.format) {
    case QuantFormat::none: widen<Bf16Decoder>(a, scratch); return product_bf16(call);
    case QuantFormat::fp8_block:
    case QuantFormat::fp8_channel: widen<E4m3Decoder>(a, scratch); return product_e4m3(call);
    case QuantFormat::mxfp4:
    case QuantFormat::mxfp4_fp8: widen<E2m1Decoder>(a, scratch); return product_mxfp4(call);
  }
}

}  // namespace mixlane
