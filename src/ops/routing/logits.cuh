// The logits of a token, spread over a wave, and what is computed from them.
#pragma once

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

__device__ inline float load_logit(const KernelArgs& args, const std::byte* row, uint32_t column) {
  if (args.logits_type == DType::f32) return reinterpret_cast<const float*>(row)[column];
  const uint32_t half = reinterpret_cast<const uint16_t*>(row)[column];
  return args.logits_type == DType::bf16 ? gpu::bf16_to_f32(half) : gpu::f16_to_f32(half);
}

__device__ inline bool is_nan(float value) { return value != value; }

// x of the contract.
__device__ inline float finish_logit(const KernelArgs& args, float logit) {
  float x = is_nan(logit) ? kNanLogit : fminf(fmaxf(logit, -kMaxLogit), kMaxLogit);
  if (args.softcap > 0.0f) x = args.softcap * tanhf(x / args.softcap);
  return x + 0.0f;  // -0 as +0
}

// The four columns from `column` on, all of them there.
__device__ inline void load_run(const KernelArgs& args, const std::byte* row, uint32_t column, float* x) {
  if (args.logits_type == DType::f32) {
    const float4 run = *reinterpret_cast<const float4*>(row + column * 4);
    x[0] = run.x;
    x[1] = run.y;
    x[2] = run.z;
    x[3] = run.w;
    return;
  }
  const uint2 run = *reinterpret_cast<const uint2*>(row + column * 2);
  const bool is_bf16 = args.logits_type == DType::bf16;
  const auto convert = [is_bf16](uint32_t half) { return is_bf16 ? gpu::bf16_to_f32(half) : gpu::f16_to_f32(half); };
  x[0] = convert(run.x & 0xffffu);
  x[1] = convert(run.x >> 16);
  x[2] = convert(run.y & 0xffffu);
  x[3] = convert(run.y >> 16);
}

// Loads the row; false if it holds a NaN.
template <int kSize, int kValues>
__device__ bool load_row(const KernelArgs& args, const std::byte* row, float (&x)[kValues]) {
#pragma unroll
  for (int slot = 0; slot < kValues; slot += 4) {
    const uint32_t column = column_of<kSize>(slot);
    if (args.aligned && column + 4 <= args.num_columns) {
      load_run(args, row, column, x + slot);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) x[slot + i] = column + i < args.num_columns ? load_logit(args, row, column + i) : kAbsent;
    }
  }
  bool unusual = args.softcap > 0.0f;
#pragma unroll
  for (int slot = 0; slot < kValues; ++slot) {
    unusual |= !(fabsf(x[slot]) <= kMaxLogit) && column_of<kSize>(slot) < args.num_columns;
    x[slot] += 0.0f;
  }
  if (gpu::Wave<kSize>::ballot(unusual) == 0) return true;
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
  const uint32_t key = gpu::wave_max<kSize>(gpu::ordered_key(value));
  return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
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
  float sum = 0.0f;
#pragma unroll
  for (int slot = 0; slot < kValues; ++slot) sum += expf(x[slot] - facts.max);
  facts.inverse_sum = 1.0f / gpu::wave_sum<kSize>(sum);
  return facts;
}

__device__ inline float score_of(Scoring scoring, float x, const RowFacts& facts) {
  switch (scoring) {
    case Scoring::softmax: return expf(x - facts.max) * facts.inverse_sum;
    case Scoring::sigmoid: return 1.0f / (1.0f + expf(-x));
    case Scoring::sqrt_softplus: return sqrtf(fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))));
    case Scoring::topk_softmax: break;
  }
  return x;
}

}  // namespace mixlane::routing_gpu
