// The warp that brings the e8m0 scales of packed weights, a byte per 32 of k and row, into the stages: into a workspace
// first, where only the lane that asked for them reads them, and from there to each stage, a word per row.
#pragma once

#include "gpu/numeric.cuh"
#include "ops/experts/wgmma/pipeline.cuh"

namespace mixlane::experts_gpu {

// A weight row's scales of 128 of k as products with e4m3 tokens use them. An e2m1 value times 2^(6 - d), where d is how far
// its group's scale lies below the row's largest one, is an e4m3 value for d = 0 to 14, and `scale` is what is left for the
// sums. Beyond 14 what e4m3 has no subnormals for is rounded to nearest: by 2^-16 of the largest scale at most.
struct FoldedScales {
  uint32_t below;  // d: a byte per group
  float scale;
};
inline constexpr uint32_t kLeastLargest = 7;  // leaves `scale` a normal number

__device__ inline float scale_of(uint32_t largest) {
  return __uint_as_float(largest == 255 ? 0x7fc00000u : (largest << 23) - (6u << 23));
}
__device__ inline uint32_t largest_scale(uint32_t scales) {
  const uint32_t pairs = __vmaxu2(__byte_perm(scales, 0, 0x4240), __byte_perm(scales, 0, 0x4341));
  return max(__vmaxu2(pairs, pairs >> 16) & 0xffffu, kLeastLargest);
}
__device__ inline FoldedScales fold_scales(uint32_t scales) {
  const uint32_t largest = largest_scale(scales);
  return {largest * 0x01010101u - scales, scale_of(largest)};
}

// Wide tiles: where all scales of a stage lie within so many binades, below which e4m3 has subnormals, all rows have the
// same largest one: their products are the same but for a power of two.
inline constexpr uint32_t kCommonBinades = 11;

// The bytes of words, the even and the odd ones of each: their largest or smallest.
struct ByteRange {
  uint32_t largest = 0, smallest = 0x00ff00ffu;
  __device__ void add(uint32_t word) {
    const uint32_t even = __byte_perm(word, 0, 0x4240), odd = __byte_perm(word, 0, 0x4341);
    largest = __vmaxu2(largest, __vmaxu2(even, odd));
    smallest = __vminu2(smallest, __vminu2(even, odd));
  }
  __device__ uint32_t max_byte() const { return max(max(largest & 0xffffu, largest >> 16), kLeastLargest); }
  __device__ uint32_t min_byte() const { return min(smallest & 0xffffu, smallest >> 16); }
};

// Of a stage's scales: the largest one of all rows, or 0 where rows have their own.
__device__ inline uint32_t& common_scale(float* scales) { return reinterpret_cast<uint32_t*>(scales)[kTileRows]; }

// What the eight magnitudes 0 to 6 are in e4m3, by d.
__device__ inline uint2 table_entry(uint32_t d) {
  const float factor = __uint_as_float((127 + 6 - min(d, 32u)) << 23);
  return make_uint2(gpu::f32x4_to_e4m3x4(0.0f, 0.5f * factor, factor, 1.5f * factor),
                    gpu::f32x4_to_e4m3x4(2.0f * factor, 3.0f * factor, 4.0f * factor, 6.0f * factor));
}

template <Operands kOperands>
__device__ uint2* decoding_table(const Shared& shared) {
  return reinterpret_cast<uint2*>(shared.scales_workspace<kOperands>() + ScalesWorkspace<kOperands>::kRawBytes);
}

template <Product kProduct, Operands kOperands>
class PackedScales {
 public:
  static constexpr bool kFolds = kOperands == Operands::e2m1_e4m3;

  __device__ PackedScales(const WgmmaArgs& args, const Shared& shared, Pipeline<kOperands>& pipe, const Tiles& tiles)
      : args_(args),
        shared_(shared),
        pipe_(pipe),
        tiles_(tiles),
        lane_(threadIdx.x % 32),
        groups_(args.depth / 32),
        workspace_(static_cast<uint32_t>(shared.scales_workspace<kOperands>() - shared_memory())) {}

  __device__ void run() const {
    // In each launch: these are of one product. The first arrival at a stage tells of it.
    if constexpr (kFolds) {
      for (uint32_t d = lane_; d < ScalesWorkspace<kOperands>::kTableBytes / sizeof(uint2); d += 32)
        decoding_table<kOperands>(shared_)[d] = table_entry(d);
    }
    const bool aligned = (reinterpret_cast<uintptr_t>(args_.mx_scales) | groups_) % 16 == 0;
    tiles_.for_each_part([&](uint32_t item, uint32_t first, uint32_t end_range) {
      const Tile tile = tiles_.tile(item, first, end_range, ptx::cluster_rank());
      if (tile.first_step == tile.end_step) return;  // what it would fetch nobody would wait for
      if (aligned)
        copy_tile<true>(tile);
      else
        copy_tile<false>(tile);
    });
  }

 private:
  static constexpr uint32_t kRowsPerLane = kTileRows / 32;
  static constexpr uint32_t kSteps = 4;  // stages of which the scales are fetched together: a unit
  // Units on their way behind the current one, as many stages as the weights are ahead: memory that is busy answers late.
  static constexpr uint32_t kAhead = 1;

  template <bool kAligned>
  __device__ void copy_tile(const Tile& tile) const {
    const uint32_t end = (tile.end_step + kSteps - 1) / kSteps;
    const auto fetch = [&](uint32_t unit) {
      if (unit < end) {
#pragma unroll
        for (uint32_t i = 0; i < kRowsPerLane; ++i) fetch_row<kAligned>(scales_of(tile, i), unit, raw<kAligned>(unit, i));
      }
      ptx::end_copy_group();
    };
    uint32_t tokens[kMaxTokens / 32];
    if constexpr (kFolds) {
      const uint32_t slot = tile.slot;
#pragma unroll
      for (uint32_t i = 0; i < kMaxTokens / 32; ++i)
        tokens[i] = static_cast<uint32_t>(max(row_of<kProduct>(args_.slots, tile, slot, lane_ + i * 32), 0));
    }
    const uint32_t num_tokens = tile.width > lane_ ? (tile.width - lane_ + 31) / 32 : 0;  // of this lane
#pragma unroll
    for (uint32_t i = 0; i < kAhead; ++i) fetch(tile.first_step / kSteps + i);
    for (uint32_t step = tile.first_step; step < tile.end_step; ++step, pipe_.advance()) {
      if (step == tile.first_step || step % kSteps == 0) {
        fetch(step / kSteps + kAhead);
        ptx::wait_copy_groups<kAhead>();
      }
      pipe_.wait_empty();
      if constexpr (kFolds) copy_token_scales(tokens, num_tokens, step);
      uint32_t words[kRowsPerLane];
#pragma unroll
      for (uint32_t i = 0; i < kRowsPerLane; ++i) {
        const auto* from = reinterpret_cast<const uint32_t*>(raw<kAligned>(step / kSteps, i)) + step % kSteps;
        words[i] = kAligned ? from[0] : __funnelshift_r(from[0], from[1], word_offset(scales_of(tile, i)) * 8);
      }
      // All are read before the first is written: the compiler cannot know that these are other places.
      uint32_t* to = reinterpret_cast<uint32_t*>(pipe_.scales()) + lane_;
#pragma unroll
      for (uint32_t i = 0; i < kRowsPerLane; ++i) to[32 * i] = words[i];
      if (kFolds && tile.wide) find_common(words);
      ptx::mbarrier_arrive(pipe_.full());
    }
  }

  // Of this lane's row i, which is row lane + 32 i of the tile: with a gate eight rows of it and eight of up take turns.
  // Worked out anew each time: eight pointers are half of this warp's registers.
  __device__ const uint8_t* scales_of(const Tile& tile, uint32_t i) const {
    const uint32_t lane = unknown(lane_);
    uint32_t row;
    if constexpr (kProduct == Product::gate_up)
      row = min(tile.index * (kTileRows / 2) + lane / 16 * 8 + lane % 8 + i * 16, args_.num_outputs - 1) +
            (lane % 16 < 8 ? 0 : args_.num_outputs);
    else
      row = min(tile.index * kTileRows + lane + i * 32, args_.weight_rows - 1);
    return args_.mx_scales + (int64_t{tile.expert} * args_.weight_rows + row) * groups_;
  }
  __device__ static uint32_t word_offset(const void* address) {
    return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(address) % 4);
  }

  template <bool kAligned>
  __device__ std::byte* raw(uint32_t unit, uint32_t i) const {
    constexpr uint32_t kPitch = kAligned ? 16 : 20;
    constexpr uint32_t kUnits = kAhead + 1;
    static_assert(kUnits * kTileRows * kPitch <= ScalesWorkspace<kOperands>::kRawBytes);
    return shared_memory() + workspace_ + (unit % kUnits * kTileRows + lane_ + i * 32) * kPitch;
  }

  // 16 bytes where all rows begin at a multiple of 16; else the words in which they are. Zeros behind a row's end.
  template <bool kAligned>
  __device__ void fetch_row(const uint8_t* row, uint32_t unit, std::byte* to) const {
    const uint32_t at = ptx::shared_address(to);
    if constexpr (kAligned) {
      ptx::copy_packet(at, row + unit * 16, true);
    } else {
      const int32_t begin = static_cast<int32_t>(unit * 16) - static_cast<int32_t>(word_offset(row));
#pragma unroll
      for (int32_t w = 0; w < 5; ++w) {
        const int32_t left = static_cast<int32_t>(groups_) - begin - 4 * w;
        ptx::copy_part_of_word(at + 4 * w, row + begin + (left > 0 ? 4 * w : 0),
                               static_cast<uint32_t>(max(min(left, 4), 0)));
      }
    }
  }

  __device__ void find_common(const uint32_t (&words)[kRowsPerLane]) const {
    ByteRange all;
#pragma unroll
    for (const uint32_t word : words) all.add(word);
    const uint32_t largest = __reduce_max_sync(~0u, all.max_byte());
    const bool common = largest < 255 && largest - __reduce_min_sync(~0u, all.min_byte()) <= kCommonBinades;
    if (lane_ == 0) common_scale(pipe_.scales()) = common ? largest : 0;
  }

  __device__ void copy_token_scales(const uint32_t (&tokens)[kMaxTokens / 32], uint32_t num_tokens, uint32_t step) const {
    const uint32_t at = ptx::shared_address(pipe_.token_scales()) + lane_ * 4;
    const float* from = unknown(args_.token_scales.data + step);
    const auto stride = static_cast<uint32_t>(args_.token_scales.stride);
#pragma unroll
    for (uint32_t i = 0; i < kMaxTokens / 32; ++i) {
      if (i >= num_tokens) break;
      ptx::copy_word(at + i * 128, from + uint64_t{unknown(tokens[i])} * stride, true);
    }
    ptx::mbarrier_arrive_after_copies(pipe_.full());
  }

  const WgmmaArgs& args_;
  const Shared& shared_;
  Pipeline<kOperands>& pipe_;
  const Tiles& tiles_;
  uint32_t lane_, groups_;
  uint32_t workspace_;  // from the beginning of shared memory: to look it up for each row takes longer than a stage may
};

}  // namespace mixlane::experts_gpu
