// The logits of a token, spread over a wave, and what is computed from them.
#pragma once

#include "core/score_math.hpp"
#include "gpu/numeric.cuh"
#include "gpu/reduce.cuh"
#include "ops/routing/device_args.hpp"

namespace mixlane::routing_gpu {

inline constexpr float kAbsent = -__builtin_huge_valf();  // behind the last column; real logits are finite
inline constexpr float kMaxLogit = 3.4028234663852886e38f;
inline constexpr float kNanLogit = -1e30f;

// A lane holds runs of four neighbouring columns.
template <int kSize>
__device__ uint32_t column_of(int slot) {
  return static_cast<uint32_t>(slot / 4 * 4 * kSize + slot % 4) + gpu::Wave<kSize>::lane() * 4;
}

// One logit, wherever it is; not inlined, as most rows are loaded by runs.
__device__ __noinline__ inline float load_logit(const std::byte* row, DType type, uint32_t column) {
  if (type == DType::f32) return reinterpret_cast<const float*>(row)[column];
  const uint32_t half = reinterpret_cast<const uint16_t*>(row)[column];
  return type == DType::bf16 ? gpu::bf16_to_f32(half) : gpu::f16_to_f32(half);
}

__device__ inline bool is_nan(float value) { return value != value; }

// In f64, like the CPU: near the cap an ulp of f32 is more than a weight may err.
__device__ __noinline__ inline float cap_logit(float x, float cap) {
  return static_cast<float>(cap * tanh(static_cast<double>(x) / cap));
}

// x of the contract.
__device__ inline float finish_logit(const KernelArgs& args, float logit) {
  float x = is_nan(logit) ? kNanLogit : fminf(fmaxf(logit, -kMaxLogit), kMaxLogit);
  if (args.softcap > 0.0f) x = cap_logit(x, args.softcap);
  return x + 0.0f;  // -0 as +0
}

// All loads first, so that they are in flight together; then the conversions.
template <int kSize, int kValues>
__device__ void load_runs(const KernelArgs& args, const std::byte* row, float (&x)[kValues]) {
  uint4 runs[kValues / 4];
  const bool wide = args.logits_type == DType::f32;
#pragma unroll
  for (int run = 0; run < kValues / 4; ++run) {
    const uint32_t column = column_of<kSize>(4 * run);
    runs[run] = {};
    if (column >= args.num_columns) continue;
    if (wide) {
      runs[run] = *reinterpret_cast<const uint4*>(row + column * 4);
    } else {
      const uint2 halves = *reinterpret_cast<const uint2*>(row + column * 2);
      runs[run].x = halves.x;
      runs[run].y = halves.y;
    }
  }
  const bool is_bf16 = args.logits_type == DType::bf16;
  const auto convert = [is_bf16](uint32_t half) { return is_bf16 ? gpu::bf16_to_f32(half) : gpu::f16_to_f32(half); };
#pragma unroll
  for (int run = 0; run < kValues / 4; ++run) {
    const bool present = column_of<kSize>(4 * run) < args.num_columns;
    const uint4 raw = runs[run];
    float* const to = x + 4 * run;
    to[0] = wide ? __uint_as_float(raw.x) : convert(raw.x & 0xffffu);
    to[1] = wide ? __uint_as_float(raw.y) : convert(raw.x >> 16);
    to[2] = wide ? __uint_as_float(raw.z) : convert(raw.y & 0xffffu);
    to[3] = wide ? __uint_as_float(raw.w) : convert(raw.y >> 16);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = present ? to[i] : kAbsent;
  }
}

// Loads what is per column, the bias.
template <int kSize, int kValues>
__device__ void load_bias(const KernelArgs& args, float (&bias)[kValues]) {
  const bool runs = args.aligned && args.num_columns % 4 == 0;
#pragma unroll
  for (int run = 0; run < kValues / 4; ++run) {
    const uint32_t first = column_of<kSize>(4 * run);
    float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (args.bias && runs && first < args.num_columns) four = *reinterpret_cast<const float4*>(args.bias + first);
    bias[4 * run] = four.x;
    bias[4 * run + 1] = four.y;
    bias[4 * run + 2] = four.z;
    bias[4 * run + 3] = four.w;
  }
  if (!args.bias || runs) return;
#pragma unroll
  for (int slot = 0; slot < kValues; ++slot)
    if (column_of<kSize>(slot) < args.num_columns) bias[slot] = args.bias[column_of<kSize>(slot)];
}

// Loads the row; false if it holds a NaN.
template <int kSize, int kValues>
__device__ bool load_row(const KernelArgs& args, const std::byte* row, float (&x)[kValues]) {
  if (args.aligned && args.num_columns % 4 == 0) {
    load_runs<kSize>(args, row, x);
  } else {
#pragma unroll
    for (int slot = 0; slot < kValues; ++slot) {
      const uint32_t column = column_of<kSize>(slot);
      x[slot] = column < args.num_columns ? load_logit(row, args.logits_type, column) : kAbsent;
    }
  }
  bool unusual = args.softcap > 0.0f;
#pragma unroll
  for (int slot = 0; slot < kValues; ++slot) {
    unusual |= !(fabsf(x[slot]) <= kMaxLogit) && column_of<kSize>(slot) < args.num_columns;
    x[slot] += 0.0f;
  }
  // Decided by the hardware's wave: its parts stay together.
  if (gpu::Wave<gpu::kHardwareWave>::ballot(unusual) == 0) return true;
  bool has_nan = false;
#pragma unroll
  for (int slot = 0; slot < kValues; ++slot) {
    if (column_of<kSize>(slot) >= args.num_columns) continue;
    has_nan |= is_nan(x[slot]);
    x[slot] = finish_logit(args, x[slot]);
  }
  return gpu::Wave<kSize>::ballot(has_nan) == 0;
}

// The largest of the wave's values.
template <int kSize>
__device__ float wave_max_f32(float value) {
  return gpu::value_of_key(gpu::wave_max<kSize>(gpu::ordered_key(value)));
}

// What all columns say for the score of one.
struct RowFacts {
  float max = 0.0f;
  float inverse_sum = 1.0f;
};

template <int kSize, int kValues>
__device__ RowFacts softmax_facts(const float (&x)[kValues]) {
  float max = x[0];
#pragma unroll
  for (int slot = 1; slot < kValues; ++slot) max = fmaxf(max, x[slot]);
  RowFacts facts;
  facts.max = wave_max_f32<kSize>(max);
  double sum = 0.0;  // in f64 the order of the sum does not matter, so the CPU's is the same
#pragma unroll
  for (int slot = 0; slot < kValues; ++slot)
    if (x[slot] != kAbsent) sum += exp_below(x[slot], facts.max);
  facts.inverse_sum = 1.0f / static_cast<float>(gpu::wave_sum<kSize>(sum));
  return facts;
}

__device__ inline float score_of(Scoring scoring, float x, const RowFacts& facts) {
  switch (scoring) {
    case Scoring::softmax: return product(exp_below(x, facts.max), facts.inverse_sum);
    case Scoring::sigmoid: return sigmoid_f32(x);
    case Scoring::sqrt_softplus: return sqrtf(softplus_f32(x));
    case Scoring::topk_softmax: break;
  }
  return x;
}

}  // namespace mixlane::routing_gpu
