// What experts.wgmma does with a tile's sums: scales, bias, activation, quantisation, and rows of memory.
#pragma once

#include "gpu/numeric.cuh"
#include "ops/experts/activation.cuh"
#include "ops/experts/wgmma/products.cuh"

namespace mixlane::experts_gpu {

// value / scale, correctly rounded, as ops/quant/encode.cuh has it; an infinity stays one.
__device__ inline float quotient(float value, float scale, float reciprocal) {
  float q = value * reciprocal;
  if (fabsf(value) > 3.402823466e38f) return q;
  q = __fmaf_rn(__fmaf_rn(-q, scale, value), reciprocal, q);
  return __fmaf_rn(__fmaf_rn(-q, scale, value), reciprocal, q);
}

// The scale of a group of 128 whose largest magnitude this is.
__device__ inline float group_scale(float largest) { return fmaxf(fminf(largest, 3.402823466e38f), 1e-10f) / 448.0f; }

// What a token's sums are to be multiplied with: its scale (e4m3_channel) and the weight of its input row. 0 behind the
// tile's last one.
template <Product kProduct, Operands kOperands>
__device__ float token_factor(const WgmmaArgs& args, const Tile& tile, uint32_t slot, uint32_t token) {
  const int32_t row = row_of<kProduct>(args.slots, tile, slot, token);
  if (row < 0) return 0.0f;
  float factor = kOperands == Operands::e4m3_channel ? args.token_scales.data[row * args.token_scales.stride] : 1.0f;
  if (args.input_weights.data) {
    const uint32_t pair =
        args.slots.sorted_pairs ? static_cast<uint32_t>(args.slots.sorted_pairs[slot + token]) : static_cast<uint32_t>(row);
    factor *= args.input_weights.data[row * args.input_weights.stride + pair - static_cast<uint32_t>(row) * args.num_topk];
  }
  return factor;
}

template <Operands kOperands>
__device__ bool multiplies_factors(const WgmmaArgs& args) {
  if (kOperands == Operands::bf16 || kOperands == Operands::e2m1) return false;
  return kOperands == Operands::e4m3_channel || args.input_weights.data;
}

// Of two words the lane whose bit kBit is set gives away the first and the other lane the second.
template <int kBit>
__device__ void exchange(uint32_t& first, uint32_t& second) {
  const bool gives_first = (threadIdx.x & kBit) != 0;
  const uint32_t other = __shfl_xor_sync(~0u, gives_first ? first : second, kBit);
  first = gives_first ? other : first;
  second = gives_first ? second : other;
}

// words[i] of lane l of four becomes words[l] of lane i.
__device__ inline void transpose_quad(uint32_t (&words)[4]) {
  exchange<1>(words[0], words[1]);
  exchange<1>(words[2], words[3]);
  exchange<2>(words[0], words[2]);
  exchange<2>(words[1], words[3]);
}

template <Product kProduct, Operands kOperands, int kN>
class Epilogue {
 public:
  __device__ Epilogue(const WgmmaArgs& args, const Shared& shared, const Tile& tile, const Place& place)
      : args_(args), shared_(shared), tile_(tile), place_(place), slot_(tile.slot) {}

  __device__ void run(Accumulators<kN>& sums) const {
    if constexpr (kQuantises) sync_groups();  // the last tile's token_floats() are read
    if (multiplies_factors<kOperands>(args_)) multiply_scales(sums);
    if (args_.bias) add_bias(sums);
    if constexpr (kProduct != Product::down) activate_sums(sums);
    if constexpr (kProduct == Product::down || kOperands == Operands::bf16 || kOperands == Operands::e2m1)
      store_bf16(sums);
    else if constexpr (kQuantises)
      store_e4m3(sums);
    else
      store_f32(sums);
  }

 private:
  static constexpr uint32_t kGroupThreads = ptx::kWarpgroupThreads;
  static constexpr bool kGated = kProduct == Product::gate_up;
  static constexpr bool kQuantises = kProduct != Product::down && has_token_groups(kOperands);

  __device__ void sync_group() const { ptx::sync_threads(1 + static_cast<int>(place_.group), kGroupThreads); }
  __device__ static void sync_groups() { ptx::sync_threads(1 + kNumGroups, kNumGroups * kGroupThreads); }

  __device__ uint32_t max_width() const { return fixed().plan.max_width; }
  __device__ float* token_floats() const { return shared_.token_floats<kOperands>() + place_.group * max_width(); }
  __device__ float* warp_maxima() const {
    return shared_.token_floats<kOperands>() + kNumGroups * max_width();
  }  // [8 warps, max_width]

  // Scales per token and per weight row, and weights of the input row.
  __device__ void multiply_scales(Accumulators<kN>& sums) const {
    float* factors = token_floats();
    if (place_.thread < kN) factors[place_.thread] = token_factor<kProduct, kOperands>(args_, tile_, slot_, place_.thread);
    sync_group();
#pragma unroll
    for (int b = 0; b < kGroupBlocks; ++b) {
      float rows[2] = {1.0f, 1.0f};
      if constexpr (kOperands == Operands::e4m3_channel) {
        for (int half = 0; half < 2; ++half)
          rows[half] = args_.weight_scales[int64_t{tile_.expert} * args_.weight_rows +
                                           place_.weight_row<kProduct>(args_, tile_, b, half)];
      }
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[b][4 * j + i] *= factors[8 * j + 2 * place_.pair + i % 2] * rows[i / 2];
      }
    }
    sync_group();
  }

  __device__ void add_bias(Accumulators<kN>& sums) const {
    const float* bias = args_.bias + int64_t{tile_.expert} * args_.weight_rows;
#pragma unroll
    for (int b = 0; b < kGroupBlocks; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // Outputs that are none may not be the largest of a group.
        const bool inside = place_.output<kProduct>(tile_, b, half) < args_.num_outputs;
        const float value = inside ? bias[place_.weight_row<kProduct>(args_, tile_, b, half)] : 0.0f;
#pragma unroll
        for (int j = 0; j < kN / 8; ++j) {
          sums[b][4 * j + 2 * half] += value;
          sums[b][4 * j + 2 * half + 1] += value;
        }
      }
  }

  // With a gate the outputs are where the gate was.
  __device__ void activate_sums(Accumulators<kN>& sums) const {
    if constexpr (!kGated) return activate_as<ActivationKind::relu2>(sums);
    switch (args_.activation.kind) {
      case ActivationKind::swiglu_oai: return activate_as<ActivationKind::swiglu_oai>(sums);
      case ActivationKind::geglu_tanh: return activate_as<ActivationKind::geglu_tanh>(sums);
      default: return activate_as<ActivationKind::swiglu>(sums);
    }
  }

  template <ActivationKind kKind>
  __device__ void activate_as(Accumulators<kN>& sums) const {
#pragma unroll
    for (int b = 0; b < kGroupBlocks; ++b)
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float* sum = &sums[b][4 * j + i];
          sum[0] = activate<kKind>(args_.activation, sum[0], sum[2]);
          if (!kGated) sum[2] = activate<kKind>(args_.activation, sum[2], 0.0f);
        }
      }
  }

  __device__ std::byte* output_row(uint32_t token) const {
    return args_.output.data + (int64_t{slot_} + token) * args_.output.stride;
  }

  // Where the eight outputs begin that rows of a block's half are; with a gate, those of both halves.
  __device__ uint32_t run_of(uint32_t block, uint32_t half) const {
    return place_.output<kProduct>(tile_, static_cast<int>(block), static_cast<int>(half)) - place_.row;
  }

  // `Packet`: of token 8 j + this lane's row, from output `column` on.
  template <class Packet>
  __device__ void store_packet(int j, uint32_t column, uint32_t value_bytes, const Packet& packet) const {
    const uint32_t token = static_cast<uint32_t>(8 * j) + place_.row;
    if (token < tile_.num_rows && column < args_.num_outputs)
      *reinterpret_cast<Packet*>(output_row(token) + int64_t{column} * value_bytes) = packet;
  }

  // A warp's matrices of eight outputs and eight tokens, turned so that a lane has two outputs of one token; then the four
  // lanes of a token change places until each has the whole of a run of eight outputs (with a gate there are two: half of
  // one).
  __device__ void store_bf16(const Accumulators<kN>& sums) const {
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
      constexpr uint32_t kHalves = kGated ? 1 : 2;
      uint32_t words[kGroupBlocks * kHalves];
#pragma unroll
      for (uint32_t i = 0; i < kGroupBlocks * kHalves; ++i) {
        const float* two = &sums[i / kHalves][4 * j + 2 * (i % kHalves)];
        words[i] = ptx::transpose_matrix(gpu::f32x2_to_bf16x2(two[0], two[1]));
      }
      if constexpr (kGated) {
        exchange<1>(words[0], words[1]);
        store_packet(j, run_of(place_.pair % 2, 0) + place_.pair / 2 * 4, 2, make_uint2(words[0], words[1]));
      } else {
        transpose_quad(words);
        store_packet(j, run_of(place_.pair / 2, place_.pair % 2), 2, make_uint4(words[0], words[1], words[2], words[3]));
      }
    }
  }

  __device__ void store_f32(const Accumulators<kN>& sums) const {
#pragma unroll
    for (int b = 0; b < kGroupBlocks; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (half == 1 && kGated) break;
        const uint32_t output = place_.output<kProduct>(tile_, b, half);
#pragma unroll
        for (int j = 0; j < kN / 8; ++j)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const uint32_t token = static_cast<uint32_t>(8 * j + i) + 2 * place_.pair;
            if (token < tile_.num_rows && output < args_.num_outputs)
              reinterpret_cast<float*>(output_row(token))[output] = sums[b][4 * j + 2 * half + i];
          }
      }
  }

  // A group of 128 outputs: the tile's with a gate, this warpgroup's without.
  __device__ void store_e4m3(const Accumulators<kN>& sums) const {
    const uint32_t pitch = max_width();
    write_warp_maxima(sums);
    sync_groups();
    const uint32_t first_warp = kGated ? 0 : place_.group * 4;
    const uint32_t num_warps = kGated ? 8 : 4;
    float* scales = token_floats();
    if (place_.thread < kN) {
      float largest = 0.0f;
      for (uint32_t w = 0; w < num_warps; ++w)
        largest = fmaxf(largest, warp_maxima()[(first_warp + w) * pitch + place_.thread]);
      const float scale = group_scale(largest);
      scales[place_.thread] = scale;
      const uint32_t group = kGated ? tile_.index : tile_.index * 2 + place_.group;
      if (place_.thread < tile_.num_rows && group * 128 < args_.num_outputs && (!kGated || place_.group == 0))
        args_.output_scales.data[(slot_ + place_.thread) * args_.output_scales.stride + group] = scale;
    }
    sync_group();
    store_codes(sums, scales);
  }

  static constexpr int kPadded = kN <= 32 ? 32 : kN <= 64 ? 64 : 128;  // tokens
  __device__ void write_warp_maxima(const Accumulators<kN>& sums) const {
    float largest[kPadded / 4];
#pragma unroll
    for (int i = 0; i < kPadded / 4; ++i) {
      const int at = 4 * (i / 2) + i % 2;
      largest[i] = 0.0f;
      if (4 * i >= kN) continue;
      largest[i] = fmaxf(fabsf(sums[0][at]), fabsf(sums[1][at]));
      if (!kGated) largest[i] = fmaxf(largest[i], fmaxf(fabsf(sums[0][at + 2]), fabsf(sums[1][at + 2])));
    }
    // The eight lanes of a token halve their tokens three times.
    constexpr int kLeft = kPadded / 32;
    uint32_t first = 0;
    halve<16, kLeft * 4>(largest, first);
    halve<8, kLeft * 2>(largest, first);
    halve<4, kLeft>(largest, first);
    float* to = warp_maxima() + (place_.group * 4 + place_.warp) * max_width();
#pragma unroll
    for (uint32_t i = 0; i < kLeft; ++i) {
      const uint32_t token = 8 * ((first + i) / 2) + 2 * place_.pair + (first + i) % 2;
      if (token < kN) to[token] = largest[i];
    }
  }

  // Among lanes that differ in bit kBit; each keeps kCount values.
  template <int kBit, int kCount>
  __device__ void halve(float (&values)[kPadded / 4], uint32_t& first) const {
    const bool upper = (place_.lane & kBit) != 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float other = __shfl_xor_sync(~0u, upper ? values[i] : values[i + kCount], kBit);
      values[i] = fmaxf(upper ? values[i + kCount] : values[i], other);
    }
    if (upper) first += kCount;
  }

  // As store_bf16(), of two runs at a time: those of both blocks with a gate, else of a block's halves.
  __device__ void store_codes(const Accumulators<kN>& sums, const float* scales) const {
#pragma unroll
    for (int j = 0; j < kN / 8; ++j) {
      const float2 scale = *reinterpret_cast<const float2*>(scales + 8 * j + 2 * place_.pair);
      const float2 reciprocal = make_float2(1.0f / scale.x, 1.0f / scale.y);
#pragma unroll
      for (uint32_t b = 0; b < (kGated ? 1 : kGroupBlocks); ++b) {
        const float* low = &sums[b][4 * j];
        const float* high = kGated ? &sums[1][4 * j] : low + 2;
        const uint32_t codes =
            gpu::f32x4_to_e4m3x4(quotient(low[0], scale.x, reciprocal.x), quotient(high[0], scale.x, reciprocal.x),
                                 quotient(low[1], scale.y, reciprocal.y), quotient(high[1], scale.y, reciprocal.y));
        // Two outputs of the lower run, two of the upper one; even lanes want four of the lower, odd ones of the upper one.
        const uint32_t own = __byte_perm(ptx::transpose_matrix(codes), 0, 0x3120);
        const uint32_t other = __shfl_xor_sync(~0u, own, 1);
        const uint32_t odd = place_.pair % 2;
        store_packet(j, (kGated ? run_of(odd, 0) : run_of(b, odd)) + place_.pair / 2 * 4, 1,
                     odd ? __byte_perm(other, own, 0x7632) : __byte_perm(own, other, 0x5410));
      }
    }
  }

  const WgmmaArgs& args_;
  const Shared& shared_;
  const Tile tile_;  // a copy: stores would have it read again and again
  const Place& place_;
  uint32_t slot_;
};

}  // namespace mixlane::experts_gpu
