// What experts.wgmma does with a wide tile's sums. A token's values are in four neighbouring lanes: scales, activation and
// quantisation need no shared memory, and nothing a barrier among warps.
#pragma once

#include "ops/experts/wgmma/epilogue.cuh"
#include "ops/experts/wgmma/wide.cuh"

namespace mixlane::experts_gpu {

template <Product kProduct, Operands kOperands>
class WideEpilogue {
 public:
  __device__ WideEpilogue(const WgmmaArgs& args, const Shared& shared, const Tile& tile, const Place& place)
      : args_(args),
        shared_(shared),
        tile_(tile),
        pair_(place.pair),
        slot_(tile.slot),
        token_(place.group * kWideGroupRows + place.warp * 16 + place.row) {}

  __device__ void run(float (&sums)[kWideSums]) const {
    if (multiplies_factors<kOperands>(args_)) multiply_scales(sums);
    if (args_.bias) add_bias(sums);
    if constexpr (kProduct != Product::down) activate_sums(sums);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      constexpr bool kBf16 = kProduct == Product::down || kOperands == Operands::bf16 || kOperands == Operands::e2m1;
      if constexpr (kBf16 && is_packed(kOperands))
        store_bf16_by_lanes(sums, half);
      else if constexpr (kBf16)
        store_bf16(sums, half);
      else if constexpr (has_token_groups(kOperands))
        store_e4m3(sums, half);
      else
        store_f32(sums, half);
    }
  }

 private:
  static constexpr bool kGated = kProduct == Product::gate_up;
  static constexpr uint32_t kOutputs = kGated ? kTileRows / 2 : kTileRows;
  static constexpr int kRuns = static_cast<int>(kOutputs) / 8;  // of eight outputs, two of them this thread's

  // The first of this thread's outputs of a run, and where their values are: of token `half` the two from 2 half on.
  __device__ uint32_t output(int run) const { return tile_.index * kOutputs + static_cast<uint32_t>(run) * 8 + 2 * pair_; }
  static constexpr int value_at(int run) { return (kGated ? 8 : 4) * run; }
  __device__ bool inside(int run) const { return output(run) < args_.num_outputs; }
  __device__ bool holds(int half) const { return token_ + 8 * static_cast<uint32_t>(half) < tile_.num_rows; }
  __device__ std::byte* output_row(int half) const {
    return args_.output.data + (int64_t{slot_} + token_ + 8 * half) * args_.output.stride;
  }

  // body(value, of the run's two outputs the lower or upper, first or second token)
  template <class Body>
  __device__ static void for_each_value(float (&sums)[kWideSums], int first, Body&& body) {
#pragma unroll
    for (int i = 0; i < 4; ++i) body(sums[first + i], i % 2, i / 2);
  }

  // Values of weight rows: `values` of the run's outputs and, with a gate, those of up; 0 where there is no output. Loads
  // have no condition, so that those of several runs are on their way at once.
  template <class Body>
  __device__ void for_each_row_pair(float (&sums)[kWideSums], const float* values, Body&& body) const {
    constexpr int kParts = kGated ? 2 : 1, kBatch = 8 / kParts;  // runs
    values += int64_t{tile_.expert} * args_.weight_rows;
#pragma unroll
    for (int first = 0; first < kRuns; first += kBatch) {
      float of_rows[kBatch][kParts][2];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const float* from = values + min(output(first + i), args_.num_outputs - 2);
#pragma unroll
        for (int up = 0; up < kParts; ++up, from += args_.num_outputs) {
          of_rows[i][up][0] = __ldg(from);
          of_rows[i][up][1] = __ldg(from + 1);
        }
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i)
#pragma unroll
        for (int up = 0; up < kParts; ++up)
          for_each_value(sums, value_at(first + i) + 4 * up, [&](float& sum, int which, int token) {
            body(sum, inside(first + i) ? of_rows[i][up][which] : 0.0f, token);
          });
    }
  }

  __device__ void multiply_scales(float (&sums)[kWideSums]) const {
    const float factors[2] = {token_factor<kProduct, kOperands>(args_, tile_, slot_, token_),
                              token_factor<kProduct, kOperands>(args_, tile_, slot_, token_ + 8)};
    if constexpr (kOperands == Operands::e4m3_channel) {
      for_each_row_pair(sums, args_.weight_scales,
                        [&](float& sum, float scale, int token) { sum *= factors[token] * scale; });
    } else {
#pragma unroll
      for (int i = 0; i < kWideSums; ++i) sums[i] *= factors[i / 2 % 2];
    }
  }

  __device__ void add_bias(float (&sums)[kWideSums]) const {
    for_each_row_pair(sums, args_.bias, [](float& sum, float bias, int) { sum += bias; });
  }

  __device__ void activate_sums(float (&sums)[kWideSums]) const {
    if constexpr (!kGated) return activate_as<ActivationKind::relu2>(sums);
    switch (args_.activation.kind) {
      case ActivationKind::swiglu_oai: return activate_as<ActivationKind::swiglu_oai>(sums);
      case ActivationKind::geglu_tanh: return activate_as<ActivationKind::geglu_tanh>(sums);
      default: return activate_as<ActivationKind::swiglu>(sums);
    }
  }

  // With a gate the outputs are where the gate was.
  template <ActivationKind kKind>
  __device__ void activate_as(float (&sums)[kWideSums]) const {
#pragma unroll
    for (int run = 0; run < kRuns; ++run)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = value_at(run) + i;
        sums[at] = activate<kKind>(args_.activation, sums[at], kGated ? sums[(at + 4) % kWideSums] : 0.0f);
      }
  }

  // Each lane gets 16 bytes of a token's row, the four of a token 64 bytes of it. Packed weights leave no room for the runs
  // of 128 bytes below: a stage more is worth more.
  __device__ void store_bf16_by_lanes(const float (&sums)[kWideSums], int half) const {
#pragma unroll
    for (int first = 0; first < kRuns; first += 4) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = value_at(first + i) + 2 * half;
        words[i] = gpu::f32x2_to_bf16x2(sums[at], sums[at + 1]);
      }
      transpose_quad(words);
      const uint32_t column = tile_.index * kOutputs + (static_cast<uint32_t>(first) + pair_) * 8;
      if (holds(half) && column < args_.num_outputs)
        *reinterpret_cast<uint4*>(output_row(half) + int64_t{column} * 2) =
            make_uint4(words[0], words[1], words[2], words[3]);
    }
  }

  // Eight tokens' 64 outputs at a time through shared memory of this warp alone, so that a token's row is written in runs of
  // 128 bytes.
  __device__ void store_bf16(const float (&sums)[kWideSums], int half) const {
    const uint32_t lane = threadIdx.x % 32, row = lane % 8;
    std::byte* const passing = shared_.template passing_rows<kOperands>();
    const uint32_t to = ptx::shared_address(passing) + row * 128;
    const uint32_t token = token_ - lane / 4 + lane / 8 + 8 * static_cast<uint32_t>(half);  // the first of two, 4 apart
    std::byte* const rows = args_.output.data + (int64_t{slot_} + token) * args_.output.stride;
    const int64_t apart = 4 * args_.output.stride;
#pragma unroll
    for (int first = 0; first < kRuns; first += 8) {
#pragma unroll
      for (int i = 0; i < 8; i += 4) {
        uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int at = value_at(first + i + j) + 2 * half;
          words[j] = gpu::f32x2_to_bf16x2(sums[at], sums[at + 1]);
        }
        const uint32_t packet = static_cast<uint32_t>(i) + lane / 8;
        ptx::store_matrices(to + ((packet ^ row) << 4), words[0], words[1], words[2], words[3]);
      }
      __syncwarp();
      const uint32_t column = tile_.index * kOutputs + static_cast<uint32_t>(first) * 8 + row * 8;
      uint4 packets[2];
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t from = lane / 8 + 4 * i;
        packets[i] = *reinterpret_cast<const uint4*>(passing + from * 128 + ((row ^ from) << 4));
      }
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i)
        if (column < args_.num_outputs && token + 4 * i < tile_.num_rows)
          *reinterpret_cast<uint4*>(rows + i * apart + int64_t{column} * 2) = packets[i];
      __syncwarp();
    }
  }

  __device__ void store_f32(const float (&sums)[kWideSums], int half) const {
    if (!holds(half)) return;
    auto* to = reinterpret_cast<float*>(output_row(half));
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      if (!inside(run)) break;
      const int at = value_at(run) + 2 * half;
      *reinterpret_cast<float2*>(to + output(run)) = make_float2(sums[at], sums[at + 1]);
    }
  }

  // 16 runs are a group of 128 outputs.
  __device__ void store_e4m3(const float (&sums)[kWideSums], int half) const {
#pragma unroll
    for (int first = 0; first < kRuns; first += 16) {
      float largest = 0.0f;
#pragma unroll
      for (int run = first; run < first + 16; ++run) {
        const int at = value_at(run) + 2 * half;
        largest = fmaxf(largest, fmaxf(fabsf(sums[at]), fabsf(sums[at + 1])));
      }
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
      const float scale = group_scale(largest);
      const uint32_t begin = tile_.index * kOutputs + static_cast<uint32_t>(first) * 8;
      const bool stores = holds(half) && begin < args_.num_outputs;
      if (stores && pair_ == 0)
        args_.output_scales.data[(slot_ + token_ + 8 * half) * args_.output_scales.stride + begin / 128] = scale;
      uint32_t words[2][4];  // of lane l's runs 4 l + {0, 1} and {2, 3}
      const float reciprocal = 1.0f / scale;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int at = value_at(first + 2 * i) + 2 * half, next = value_at(first + 2 * i + 1) + 2 * half;
        words[i % 2][i / 2] =
            gpu::f32x4_to_e4m3x4(quotient(sums[at], scale, reciprocal), quotient(sums[at + 1], scale, reciprocal),
                                 quotient(sums[next], scale, reciprocal), quotient(sums[next + 1], scale, reciprocal));
      }
      transpose_quad(words[0]);
      transpose_quad(words[1]);
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t column = begin + pair_ * 32 + i * 16;
        if (!stores || column >= args_.num_outputs) continue;
        *reinterpret_cast<uint4*>(output_row(half) + column) =
            make_uint4(__byte_perm(words[i][0], words[i][1], 0x5410), __byte_perm(words[i][2], words[i][3], 0x5410),
                       __byte_perm(words[i][0], words[i][1], 0x7632), __byte_perm(words[i][2], words[i][3], 0x7632));
      }
    }
  }

  const WgmmaArgs& args_;
  const Shared& shared_;
  const Tile tile_;  // a copy: stores would have it read again and again
  uint32_t pair_, slot_;
  uint32_t token_;  // of the tile: the first of this thread's two
};

}  // namespace mixlane::experts_gpu
