// experts.mma: every format, by decoding values to bf16 on their way to shared memory; for GPUs and arguments that no
// other variant takes. Blocks walk tiles of 64 weight rows (with a gate 32 of the gate and their 32 of up) x 64 rows of
// one expert.
#pragma once

#include "gpu/matrix.cuh"
#include "gpu/numeric.cuh"
#include "ops/experts/activation.cuh"
#include "ops/experts/mma/args.hpp"

namespace mixlane::experts_gpu {

inline constexpr uint32_t kMmaThreads = 256;
inline constexpr uint32_t kMmaSide = 64;   // rows and tokens of a tile, and values of k at a time
inline constexpr uint32_t kMmaPitch = 72;  // 16-bit values: eight rows meet different banks
inline constexpr uint32_t kMmaRun = 16;    // values that a thread decodes at a time: sizes are multiples of it
inline constexpr uint32_t kNumWaves = kMmaThreads / gpu::kHardwareWave;
inline constexpr uint32_t kMmaTiles = 16 / kNumWaves;  // of 16 x 16, in the tile, per wave

struct MmaTile {
  uint32_t expert = 0;
  uint32_t first_output = 0;
  uint32_t first_row = 0;  // of the expert's
  uint32_t num_rows = 0;
  uint32_t slot = 0;  // of the first row
};

struct MmaShared {
  uint16_t weights[kMmaSide * kMmaPitch];
  uint16_t tokens[kMmaSide * kMmaPitch];
  float sums[kMmaSide][kMmaSide + 1];  // [weight row, token]
  int32_t rows[kMmaSide];              // of the tokens, -1 behind them
};

__device__ inline uint32_t mma_count(const MmaArgs& args, uint32_t expert) {
  return args.slots.counts ? static_cast<uint32_t>(max(args.slots.counts[expert], 0)) : args.slots.num_rows;
}

// The weight row in row `r` of a tile.
__device__ inline uint32_t mma_weight_row(const MmaArgs& args, const MmaTile& tile, uint32_t r) {
  if (!args.gated) return tile.first_output + r;
  return tile.first_output + r % (kMmaSide / 2) + (r < kMmaSide / 2 ? 0 : args.num_outputs);
}
__device__ inline bool mma_inside(const MmaArgs& args, const MmaTile& tile, uint32_t r) {
  return tile.first_output + (args.gated ? r % (kMmaSide / 2) : r) < args.num_outputs;
}

// kMmaRun values at `from`, as bf16. Bytes at a time: rows may begin anywhere.
__device__ inline void decode_run(DType type, const std::byte* from, float mx_scale, uint16_t* to) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(from);
  const bool aligned = reinterpret_cast<uintptr_t>(from) % 8 == 0;
  uint64_t words[4] = {};
  const uint32_t num_bytes = type == DType::bf16 ? 32 : type == DType::fp8_e4m3 ? 16 : 8;
#pragma unroll
  for (uint32_t w = 0; w < 4; ++w) {
    if (w * 8 >= num_bytes) break;
    if (aligned) {
      words[w] = reinterpret_cast<const uint64_t*>(from)[w];
    } else {
      for (uint32_t i = 0; i < 8; ++i) words[w] |= static_cast<uint64_t>(bytes[w * 8 + i]) << (8 * i);
    }
  }
#pragma unroll
  for (uint32_t i = 0; i < kMmaRun; i += 2) {
    uint32_t pair;
    if (type == DType::bf16) {
      pair = static_cast<uint32_t>(words[i / 4] >> (i % 4 * 16));
    } else if (type == DType::fp8_e4m3) {
      const auto codes = static_cast<uint32_t>(words[i / 8] >> (i % 8 * 8));
      pair = gpu::f32x2_to_bf16x2(gpu::e4m3_to_f32(codes & 0xffu), gpu::e4m3_to_f32(codes >> 8 & 0xffu));
    } else {
      const auto codes = static_cast<uint32_t>(words[0] >> (i * 4));
      pair = gpu::f32x2_to_bf16x2(gpu::e2m1_to_f32(codes & 15u) * mx_scale, gpu::e2m1_to_f32(codes >> 4 & 15u) * mx_scale);
    }
    reinterpret_cast<uint32_t*>(to)[i / 2] = pair;
  }
}

__device__ inline void clear_run(uint16_t* to) {
#pragma unroll
  for (uint32_t i = 0; i < kMmaRun / 2; ++i) reinterpret_cast<uint32_t*>(to)[i] = 0;
}

// Values [k, k + 64) of the tile's weight rows and tokens: a run of 16 each per thread.
__device__ inline void load_step(const MmaArgs& args, const MmaTile& tile, MmaShared& shared, uint32_t k) {
  const uint32_t r = threadIdx.x / 4;
  const uint32_t col = k + threadIdx.x % 4 * kMmaRun;
  uint16_t* to = shared.weights + r * kMmaPitch + threadIdx.x % 4 * kMmaRun;
  if (col < args.depth && mma_inside(args, tile, r)) {
    const int64_t row = int64_t{tile.expert} * args.weight_rows + mma_weight_row(args, tile, r);
    float scale = 1.0f;
    if (args.mx_scales) scale = gpu::e8m0_to_f32(args.mx_scales[row * ((args.depth + 31) / 32) + col / 32]);
    decode_run(args.weight_type, args.weights + (row * args.depth + col) * args.weight_bits / 8, scale, to);
  } else {
    clear_run(to);
  }
  to = shared.tokens + r * kMmaPitch + threadIdx.x % 4 * kMmaRun;
  const int32_t row = shared.rows[r];
  if (col < args.depth && row >= 0)
    decode_run(args.row_type,
               args.rows.data + row * args.rows.stride + int64_t{col} * (args.row_type == DType::bf16 ? 2 : 1), 1.0f, to);
  else
    clear_run(to);
}

// Which 16 x 16 of the tile are this wave's: of one row block, neighbouring tokens.
__device__ inline uint32_t wave_row(uint32_t wave) { return wave * kMmaTiles / 4 * 16; }
__device__ inline uint32_t wave_column(uint32_t wave, uint32_t t) { return (wave * kMmaTiles % 4 + t) * 16; }

// sums += part * scales of group `group` of k.
__device__ inline void add_scaled(const MmaArgs& args, const MmaTile& tile, const MmaShared& shared, uint32_t group,
                                  const gpu::MatrixTile (&part)[kMmaTiles], gpu::MatrixTile (&sums)[kMmaTiles]) {
  const uint32_t wave = threadIdx.x / gpu::kHardwareWave;
  const uint32_t groups = (args.depth + 127) / 128;
  const float* weight_scales = args.weight_scales + int64_t{tile.expert} * ((args.weight_rows + 127) / 128) * groups;
#pragma unroll
  for (uint32_t t = 0; t < kMmaTiles; ++t)
#pragma unroll
    for (int i = 0; i < gpu::MatrixTile::kValues; ++i) {
      const int32_t token = shared.rows[wave_column(wave, t) + part[t].column(i)];
      const uint32_t row = min(mma_weight_row(args, tile, wave_row(wave) + part[t].row(i)), args.weight_rows - 1);
      const float token_scale = token < 0 ? 0.0f : args.token_scales.data[token * args.token_scales.stride + group];
      const float weight_scale = args.weight_scales ? weight_scales[row / 128 * groups + group] : 1.0f;
      sums[t].value[i] += part[t].value[i] * (token_scale * weight_scale);
    }
}

__device__ inline void multiply_tile(const MmaArgs& args, const MmaTile& tile, MmaShared& shared) {
  const uint32_t wave = threadIdx.x / gpu::kHardwareWave;
  gpu::MatrixTile sums[kMmaTiles];
  gpu::MatrixTile part[kMmaTiles];
  for (uint32_t k = 0; k < args.depth; k += kMmaSide) {
    __syncthreads();
    load_step(args, tile, shared, k);
    __syncthreads();
#pragma unroll
    for (uint32_t at = 0; at < kMmaSide; at += 16)
#pragma unroll
      for (uint32_t t = 0; t < kMmaTiles; ++t)
        part[t].add_product(shared.weights + wave_row(wave) * kMmaPitch + at,
                            shared.tokens + wave_column(wave, t) * kMmaPitch + at, kMmaPitch);
    if (args.group_scales && (k / kMmaSide % 2 == 1 || k + kMmaSide >= args.depth)) {
      add_scaled(args, tile, shared, k / 128, part, sums);
#pragma unroll
      for (uint32_t t = 0; t < kMmaTiles; ++t) part[t] = {};
    }
  }
#pragma unroll
  for (uint32_t t = 0; t < kMmaTiles; ++t)
#pragma unroll
    for (int i = 0; i < gpu::MatrixTile::kValues; ++i)
      shared.sums[wave_row(wave) + part[t].row(i)][wave_column(wave, t) + part[t].column(i)] =
          args.group_scales ? sums[t].value[i] : part[t].value[i];
  __syncthreads();
}

// What is left to do with the sum of a weight row and a token: scales per row and token, the token's weight, bias.
__device__ inline float finish_sum(const MmaArgs& args, const MmaTile& tile, const MmaShared& shared, uint32_t r,
                                   uint32_t token) {
  const int64_t row = int64_t{tile.expert} * args.weight_rows + mma_weight_row(args, tile, r);
  const int32_t from = shared.rows[token];
  float sum = shared.sums[r][token];
  if (args.channel_scales) sum *= args.token_scales.data[from * args.token_scales.stride] * args.weight_scales[row];
  if (args.input_weights.data) {
    const uint32_t pair = args.slots.sorted_pairs ? static_cast<uint32_t>(args.slots.sorted_pairs[tile.slot + token])
                                                  : static_cast<uint32_t>(from);
    sum *= args.input_weights.data[from * args.input_weights.stride + pair - static_cast<uint32_t>(from) * args.num_topk];
  }
  return args.bias ? sum + args.bias[row] : sum;
}

__device__ inline void store_tile(const MmaArgs& args, const MmaTile& tile, const MmaShared& shared) {
  const uint32_t num_outputs = args.gated ? kMmaSide / 2 : kMmaSide;
  for (uint32_t i = threadIdx.x; i < num_outputs * kMmaSide; i += kMmaThreads) {
    const uint32_t token = i / num_outputs, r = i % num_outputs;
    if (token >= tile.num_rows || !mma_inside(args, tile, r)) continue;
    float value = finish_sum(args, tile, shared, r, token);
    if (args.activates)
      value = activate(args.activation, value, args.gated ? finish_sum(args, tile, shared, r + num_outputs, token) : 0.0f);
    std::byte* to = args.output.data + (int64_t{tile.slot} + token) * args.output.stride;
    if (args.output_f32)
      reinterpret_cast<float*>(to)[tile.first_output + r] = value;
    else
      reinterpret_cast<uint16_t*>(to)[tile.first_output + r] = static_cast<uint16_t>(gpu::f32x2_to_bf16x2(value, 0.0f));
  }
}

__device__ inline void run_tile(const MmaArgs& args, const MmaTile& tile, MmaShared& shared) {
  __syncthreads();
  if (threadIdx.x < kMmaSide) {
    int32_t row = -1;
    if (threadIdx.x < tile.num_rows) {
      row = static_cast<int32_t>(tile.slot + threadIdx.x);
      if (args.slots.sorted_pairs && args.gathers)
        row = static_cast<int32_t>(gpu::divide(static_cast<uint32_t>(args.slots.sorted_pairs[row]), args.slots.by_topk));
    }
    shared.rows[threadIdx.x] = row;
  }
  multiply_tile(args, tile, shared);
  store_tile(args, tile, shared);
}

__global__ void __launch_bounds__(kMmaThreads) experts_mma(const MmaArgs args) {
  __shared__ MmaShared shared;
  gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();
  const uint32_t tile_outputs = args.gated ? kMmaSide / 2 : kMmaSide;
  const uint32_t num_columns = (args.num_outputs + tile_outputs - 1) / tile_outputs;
  uint32_t next = blockIdx.x;  // among the tiles of this expert and those behind it
  for (uint32_t expert = 0; expert < args.slots.num_experts; ++expert) {
    const uint32_t count = mma_count(args, expert);
    const uint32_t num_tiles = (count + kMmaSide - 1) / kMmaSide * num_columns;
    for (; next < num_tiles; next += gridDim.x) {
      MmaTile tile;
      tile.expert = expert;
      tile.first_output = next % num_columns * tile_outputs;
      tile.first_row = next / num_columns * kMmaSide;
      tile.num_rows = min(kMmaSide, count - tile.first_row);
      tile.slot = (args.slots.offsets ? static_cast<uint32_t>(args.slots.offsets[expert]) : 0) + tile.first_row;
      run_tile(args, tile, shared);
    }
    next -= num_tiles;
  }
}

}  // namespace mixlane::experts_gpu
