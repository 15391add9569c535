// The logits of a token, spread over a wave, and what is computed from them.
#pragma once

#include "core/score_math.hpp"
#include "gpu/numeric.cuh"
#include "gpu/reduce.cuh"
#include "ops/routing/device_args.hpp"

namespace mixlane::routing_gpu {

// A column that can't be chosen: behind the last one, or of a closed group. No comparison is true for it, and a maximum
// takes no notice of it. Logits are finite once they are loaded, choices are not NaN.
inline constexpr float kAbsent = __builtin_nanf("");
inline constexpr float kLowest = -__builtin_huge_valf();
inline constexpr float kMaxLogit = 3.4028234663852886e38f;
inline constexpr float kNanLogit = -1e30f;

// A lane holds runs of four neighbouring columns.
template <int kSize>
__device__ uint32_t column_of(int slot) {
  return static_cast<uint32_t>(slot / 4 * 4 * kSize + slot % 4) + gpu::Wave<kSize>::lane() * 4;
}

// One logit, wherever it is.
__device__ inline float load_logit(const std::byte* row, DType type, uint32_t column) {
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

// Of runs as the row has them. All loads first, so that they are in flight together. Zeros behind the last column.
template <int kSize, class Run, int kRuns>
__device__ void load_raw_runs(const KernelArgs& args, const std::byte* row, Run (&runs)[kRuns]) {
  const Run* const first = reinterpret_cast<const Run*>(row) + gpu::Wave<kSize>::lane();
  if (args.num_columns == 4 * kRuns * kSize) {
#pragma unroll
    for (int run = 0; run < kRuns; ++run) runs[run] = first[run * kSize];
  } else {
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      runs[run] = {};
      if (column_of<kSize>(4 * run) < args.num_columns) runs[run] = first[run * kSize];
    }
  }
}

template <int kSize, int kValues>
__device__ void load_runs(const KernelArgs& args, const std::byte* row, float (&x)[kValues]) {
  if (args.logits_type == DType::f32) {
    float4 runs[kValues / 4];
    load_raw_runs<kSize>(args, row, runs);
#pragma unroll
    for (int run = 0; run < kValues / 4; ++run) {
      x[4 * run] = runs[run].x;
      x[4 * run + 1] = runs[run].y;
      x[4 * run + 2] = runs[run].z;
      x[4 * run + 3] = runs[run].w;
    }
    return;
  }
  uint2 runs[kValues / 4];
  load_raw_runs<kSize>(args, row, runs);
  const auto convert = [&](auto to_f32) {
#pragma unroll
    for (int run = 0; run < kValues / 4; ++run) {
      x[4 * run] = to_f32(runs[run].x & 0xffffu);
      x[4 * run + 1] = to_f32(runs[run].x >> 16);
      x[4 * run + 2] = to_f32(runs[run].y & 0xffffu);
      x[4 * run + 3] = to_f32(runs[run].y >> 16);
    }
  };
  if (args.logits_type == DType::bf16)
    convert([](uint32_t half) { return gpu::bf16_to_f32(half); });
  else
    convert([](uint32_t half) { return gpu::f16_to_f32(half); });
}

// Puts kAbsent behind the last column.
template <int kSize, int kValues>
__device__ void mark_absent(const KernelArgs& args, float (&values)[kValues]) {
  if (args.num_columns == kSize * kValues) return;
#pragma unroll
  for (int slot = 0; slot < kValues; ++slot)
    if (column_of<kSize>(slot) >= args.num_columns) values[slot] = kAbsent;
}

// Loads what is per column, the bias.
template <int kSize, int kValues>
__device__ void load_bias(const KernelArgs& args, float (&bias)[kValues]) {
  const bool runs = args.aligned;
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
  if (args.bias && !runs) {
#pragma unroll
    for (int slot = 0; slot < kValues; ++slot)
      if (column_of<kSize>(slot) < args.num_columns) bias[slot] = args.bias[column_of<kSize>(slot)];
  }
}

// What a logit and its bias are worth: a NaN, which only a bias can bring, as -inf.
__device__ inline float choice_of(float score, float bias) { return fmaxf(score + bias, kLowest); }

// Any row, to shared memory of the wave; whether this lane met a NaN.
template <int kSize>
__device__ __noinline__ bool load_one_by_one(const KernelArgs& args, const std::byte* row, float* values) {
  bool has_nan = false;
  for (uint32_t column = gpu::Wave<kSize>::lane(); column < args.num_columns; column += kSize) {
    const float logit = load_logit(row, args.logits_type, column);
    has_nan |= is_nan(logit);
    values[column] = finish_logit(args, logit);
  }
  gpu::Wave<kSize>::sync();
  return has_nan;
}

// Loads the row; false if it holds a NaN. Zeros may still be negative: who compares their bits makes them positive.
// `values`: shared memory of the wave for as many.
template <int kSize, int kValues>
__device__ bool load_row(const KernelArgs& args, const std::byte* row, float (&x)[kValues], float* values) {
  bool has_nan = false;
  bool is_usual = args.plain;
  if (is_usual) {
    load_runs<kSize>(args, row, x);
    float zeros[2] = {};  // or NaN, if a logit is not finite
#pragma unroll
    for (int slot = 0; slot < kValues; ++slot) zeros[slot % 2] = fused(x[slot], 0.0f, zeros[slot % 2]);
    // Decided by the hardware's wave: its parts stay together.
    is_usual = gpu::Wave<gpu::kHardwareWave>::ballot(is_nan(zeros[0] + zeros[1])) == 0;
  }
  if (!is_usual) {
    has_nan = gpu::Wave<kSize>::ballot(load_one_by_one<kSize>(args, row, values)) != 0;
#pragma unroll
    for (int slot = 0; slot < kValues; ++slot) x[slot] = values[column_of<kSize>(slot)];
    gpu::Wave<kSize>::sync();
  }
  mark_absent<kSize>(args, x);
  return !has_nan;
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

// kExact: to the bit what the CPU finds, as the order of choices may hang on it; else within 5e-7.
template <int kSize, bool kExact, int kValues>
__device__ RowFacts softmax_facts(const float (&x)[kValues]) {
  float max = kLowest;
#pragma unroll
  for (int slot = 0; slot < kValues; ++slot) max = fmaxf(max, x[slot]);
  RowFacts facts;
  facts.max = wave_max_f32<kSize>(max);
  using Sum = std::conditional_t<kExact, double, float>;
  Sum sums[2] = {};  // in f64 the order of the sum does not matter, so the CPU's is the same
#pragma unroll
  for (int slot = 0; slot < kValues; ++slot) {
    const float power = kExact ? exp_below(x[slot], facts.max) : exp_f32(x[slot] - facts.max);
    sums[slot % 2] += is_nan(x[slot]) ? 0.0f : power;
  }
  facts.inverse_sum = 1.0f / static_cast<float>(gpu::wave_sum<kSize>(sums[0] + sums[1]));
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
