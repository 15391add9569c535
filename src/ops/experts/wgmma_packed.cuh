// Products with packed e2m1 weights: decoded to bf16 in registers, from where the tensor cores take them.
#pragma once

#include "ops/experts/wgmma_products.cuh"

namespace mixlane::experts_gpu {

inline constexpr int kPackedGroups = 4;  // of 32 values of k with a scale, in a stage

// The e8m0 scales of the thread's four weight rows for one stage, a byte per group; fetched a stage ahead of their use.
class PackedScales {
 public:
  template <Product kProduct>
  __device__ void begin(const WgmmaArgs& args, const Tile& tile, const Place& place, uint32_t first_step) {
    groups_ = (args.depth + 31) / 32;
    whole_ = groups_ % kPackedGroups == 0 && reinterpret_cast<uintptr_t>(args.mx_scales) % 4 == 0;
    at_ = first_step * kPackedGroups;
    const uint8_t* expert = args.mx_scales + int64_t{tile.expert} * args.weight_rows * groups_;
#pragma unroll
    for (int b = 0; b < kGroupBlocks; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        from_[b][half] = expert + int64_t{place.weight_row<kProduct>(args, tile, b, half)} * groups_;
    load();
  }
  __device__ void advance() {
#pragma unroll
    for (int b = 0; b < kGroupBlocks; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half) now[b][half] = next_[b][half];
    load();
  }
  uint32_t now[kGroupBlocks][2];

 private:
  __device__ void load() {
    if (at_ >= groups_) return;
#pragma unroll
    for (int b = 0; b < kGroupBlocks; ++b)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint8_t* from = from_[b][half] + at_;
        if (whole_) {
          next_[b][half] = __ldg(reinterpret_cast<const uint32_t*>(from));
        } else {
          next_[b][half] = 0;
          for (uint32_t i = 0; i < kPackedGroups && at_ + i < groups_; ++i)
            next_[b][half] |= uint32_t{__ldg(from + i)} << (8 * i);
        }
      }
    at_ += kPackedGroups;
  }
  const uint8_t* from_[kGroupBlocks][2];
  uint32_t next_[kGroupBlocks][2];
  uint32_t groups_, at_;
  bool whole_;
};

// Group `group` of row `row` (0 to 255 in the tile), 32 values: the bytes with this thread's columns, 2 pair + {0, 1} + 8 i
// in byte i. A row has 64 bytes; its packets are swizzled like 128-byte rows' but by the row's bits 1 and 2.
__device__ inline uint32_t own_bytes(const std::byte* weights, uint32_t row, int group, uint32_t pair) {
  const uint4 words =
      *reinterpret_cast<const uint4*>(weights + row * 64 + ((static_cast<uint32_t>(group) ^ (row / 2 % 4)) << 4));
  const uint32_t select = pair | (pair + 4) << 4;
  return __byte_perm(__byte_perm(words.x, words.y, select), __byte_perm(words.z, words.w, select), 0x5410);
}

// The eight values of own_bytes() times 2^(scale - 127), exact: to[i] has columns 2 pair + {0, 1} + 8 i.
__device__ inline void decode_bytes(uint32_t codes, uint32_t scale, uint32_t (&to)[4]) {
  // The upper and lower bytes of the bf16 of 0, 0.5, 1, 1.5, 2, 3, 4, 6.
  constexpr uint32_t kUpper[2] = {0x3f3f3f00u, 0x40404040u};
  constexpr uint32_t kLower[2] = {0xc0800000u, 0xc0804000u};
  const uint32_t factor = scale == 0 ? 0x00400040u : scale == 0xffu ? 0x7fc07fc0u : scale << 7 | scale << 23;
  const uint32_t magnitudes = codes & 0x77777777u;
  const uint32_t shifted = codes << 4;  // signs of the even values where the odd ones' were
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibbles = i < 2 ? magnitudes : magnitudes >> 16;
    const uint32_t upper = __byte_perm(kUpper[0], kUpper[1], nibbles);
    const uint32_t lower = __byte_perm(kLower[0], kLower[1], nibbles);
    const uint32_t value = __byte_perm(lower, upper, i % 2 ? 0x7362 : 0x5140);
    uint32_t signs;  // bytes 1 and 3: the sign bit of byte i of `shifted` and of `codes`, spread
    asm("prmt.b32 %0, %1, %2, %3;"
        : "=r"(signs)
        : "r"(shifted), "r"(codes), "r"(static_cast<uint32_t>(8 + i) << 4 | static_cast<uint32_t>(12 + i) << 12));
    const uint32_t word = value | (signs & 0x80008000u);
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(to[i]) : "r"(word), "r"(factor));
  }
}

// One tile. A block's products are in flight while the next block is decoded, and a stage is held until they have read it.
template <Product kProduct, int kN>
__device__ void multiply_packed(Pipeline<Operands::e2m1>& pipe, const Place& place, uint32_t num_steps, PackedScales& scales,
                                Accumulators& sums) {
  clear<kN>(sums);
  const uint64_t* previous = nullptr;
  constexpr int kBatch = 2;                      // groups decoded before their products start
  uint32_t values[kGroupBlocks][2 * kBatch][4];  // per 16 of k: rows and columns as the product wants them
  for (uint32_t step = 0; step < num_steps; ++step, pipe.advance()) {
    scales.advance();
    wait_stage<kProduct != Product::down>(pipe);
    const uint64_t tokens = ptx::swizzled_rows(ptx::shared_address(pipe.tokens()));
    const uint64_t second = tokens + (pipe.token_bytes() >> 4);
#pragma unroll
    for (int first = 0; first < kPackedGroups; first += kBatch)
#pragma unroll
      for (int b = 0; b < kGroupBlocks; ++b) {
        ptx::wgmma_wait<1>();
        if (step > 0 && first == 0 && b == 1) release_stage(previous);
        const uint32_t row = place.group * 128 + static_cast<uint32_t>(b) * 64 + place.warp * 16 + place.row;
#pragma unroll
        for (int g = 0; g < kBatch; ++g)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            uint32_t columns[4];
            decode_bytes(own_bytes(pipe.weights(), row + static_cast<uint32_t>(half) * 8, first + g, place.pair),
                         scales.now[b][half] >> (8 * (first + g)) & 0xffu, columns);
#pragma unroll
            for (int i = 0; i < 4; ++i) values[b][2 * g + i / 2][i % 2 * 2 + half] = columns[i];
          }
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < 2 * kBatch; ++k)
          ptx::Wgmma<kN>::mma_registers(
              sums[b], values[b][k],
              (first < 2 ? tokens : second) + static_cast<uint64_t>(first % 2 * 2 + k) * ptx::kDescriptorStep);
        ptx::wgmma_commit();
      }
    previous = pipe.empty();
  }
  ptx::wgmma_wait<0>();
  release_stage(previous);
}

}  // namespace mixlane::experts_gpu
