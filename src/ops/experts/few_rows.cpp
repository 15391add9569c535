#include "ops/experts/few_rows.hpp"

#include <algorithm>
#include <cstring>

#include "core/numeric.hpp"
#include "core/simd.hpp"
#include "ops/experts/lanes.hpp"

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

// Sums of kStep products each, for R rows and N weight rows: sums[n][r] += w[n] * x[r] over `steps` steps.
template <class Decoder, int R, int N>
[[gnu::always_inline]] static inline void accumulate(const uint8_t* const (&weights)[N], const float* x, int64_t x_stride,
                                                     int64_t steps, F32x16 (&sums)[N][R]) {
  constexpr int kVectors = Decoder::kStep / kLanes;
  for (int64_t s = 0; s < steps; ++s) {
    F32x16 w[N][kVectors];
    for (int n = 0; n < N; ++n) Decoder::load(weights[n] + s * Decoder::kBytes, w[n]);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < kVectors; ++v) {
        F32x16 value;
        std::memcpy(&value, x + r * x_stride + s * Decoder::kStep + v * kLanes, sizeof(value));
        for (int n = 0; n < N; ++n) sums[n][r] += w[n][v] * value;
      }
  }
}

// The factor of scale group g of matrix row n and row r: what the group's sum is multiplied with.
[[gnu::always_inline]] static inline float group_factor(const Call& call, int64_t n, int64_t r, int64_t g, int64_t groups) {
  return call.scales[r * groups + g] * weight_scale(call.matrix, n, g);
}

// N matrix rows from n on, with one scale per group of the reduction and per row.
template <class Decoder, int R, int N>
[[gnu::always_inline]] static inline void grouped_columns(const Call& call, int64_t n) {
  const MatrixView& m = call.matrix;
  const int64_t group = group_size(m.format, m.cols), groups = num_groups(m.format, m.cols);
  float totals[N][R] = {};
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = g * group, steps = std::min(group, m.cols - begin) / Decoder::kStep;
    const uint8_t* weights[N];
    for (int i = 0; i < N; ++i) weights[i] = m.row(n + i) + begin / Decoder::kStep * Decoder::kBytes;
    F32x16 sums[N][R] = {};
    accumulate<Decoder, R, N>(weights, call.x + begin, call.x_stride, steps, sums);
    for (int i = 0; i < N; ++i)
      for (int r = 0; r < std::min<int64_t>(R, call.rows); ++r) {
        float sum = 0;
        for (int l = 0; l < kLanes; ++l) sum += sums[i][r][l];
        totals[i][r] += sum * group_factor(call, n + i, r, g, groups);
      }
  }
  for (int i = 0; i < N; ++i)
    for (int r = 0; r < std::min<int64_t>(R, call.rows); ++r) call.c[r * call.ldc + n + i - call.first] = totals[i][r];
}

// The same for mxfp4: every step of 32 values has its own power of two.
template <int R, int N>
[[gnu::always_inline]] static inline void mx_columns(const Call& call, int64_t n) {
  const MatrixView& m = call.matrix;
  F32x16 totals[N][R] = {};
  for (int64_t begin = 0; begin < m.cols; begin += kMxGroup) {
    uint8_t tail[N][16] = {};
    const uint8_t* weights[N];
    for (int i = 0; i < N; ++i) {
      weights[i] = m.row(n + i) + begin / 2;
      if (begin + kMxGroup > m.cols) {
        std::memcpy(tail[i], weights[i], static_cast<size_t>(m.cols - begin) / 2);
        weights[i] = tail[i];
      }
    }
    F32x16 sums[N][R] = {};
    accumulate<E2m1Decoder, R, N>(weights, call.x + begin, call.x_stride, 1, sums);
    for (int i = 0; i < N; ++i) {
      const float scale = e8m0_to_f32(m.mx_scales(n + i)[begin / kMxGroup]);
      for (int r = 0; r < R; ++r) totals[i][r] += sums[i][r] * scale;
    }
  }
  for (int i = 0; i < N; ++i)
    for (int r = 0; r < std::min<int64_t>(R, call.rows); ++r) {
      float sum = 0;
      for (int l = 0; l < kLanes; ++l) sum += totals[i][r][l];
      call.c[r * call.ldc + n + i - call.first] = sum;
    }
}

template <class Decoder, int R, int N>
[[gnu::always_inline]] static inline void columns(const Call& call, int64_t n) {
  if constexpr (std::is_same_v<Decoder, E2m1Decoder>)
    mx_columns<R, N>(call, n);
  else
    grouped_columns<Decoder, R, N>(call, n);
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

int64_t padded(int64_t cols) { return ceil_div(cols, kMxGroup) * kMxGroup; }

// x in f32, in the order in which the decoder delivers weights; zeros behind the end and for rows that are not there.
void widen(const MatrixView& matrix, const OperandRows& a, float* x) {
  const int64_t stride = padded(a.cols);
  std::fill_n(x, kFewRows * stride, 0.0f);
  for (int64_t r = 0; r < a.rows; ++r) {
    const uint16_t* from = a.values + r * a.cols;
    float* to = x + r * stride;
    if (matrix.format != QuantFormat::mxfp4) {
      for (int64_t i = 0; i < a.cols; ++i) to[i] = bf16_to_f32(from[i]);
    } else {
      for (int64_t i = 0; i < a.cols; ++i) to[i / 32 * 32 + i % 2 * kLanes + i % 32 / 2] = bf16_to_f32(from[i]);
    }
  }
}

}  // namespace

int64_t few_rows_scratch(int64_t cols) { return kFewRows * padded(cols); }

void few_rows_product(const MatrixView& matrix, int64_t first, int64_t count, const OperandRows& a, float* c, int64_t ldc,
                      float* scratch) {
  widen(matrix, a, scratch);
  const Call call{matrix, first, count, scratch, padded(a.cols), a.scales, a.rows, c, ldc};
  switch (matrix.format) {
    case QuantFormat::none: return product_bf16(call);
    case QuantFormat::fp8_block:
    case QuantFormat::fp8_channel: return product_e4m3(call);
    case QuantFormat::mxfp4: return product_mxfp4(call);
  }
}

}  // namespace mixlane
