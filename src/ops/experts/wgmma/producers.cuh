// The warps of experts.wgmma that fill stages. Each role walks all stages by itself.
#pragma once

#include "ops/experts/wgmma/finished.cuh"

namespace mixlane::experts_gpu {

template <Product kProduct, Operands kOperands>
class PackedScales;  // packed_scales.cuh

// The stages of one product.
template <Product kProduct, Operands kOperands>
struct Producers {
  using Ring = Pipeline<kOperands>;
  using S = Step<kOperands>;
  static constexpr bool kGathers = kProduct != Product::down;
  static constexpr uint32_t kWeightsWarp = 0;
  static constexpr uint32_t kScalesWarp = 1;
  static constexpr uint32_t kTokensWarp = 2;  // and the next one
  static constexpr uint32_t kFullArrivals = 1 + 64 + StageScales<kOperands>::kArrivals;
  static constexpr uint32_t kBoxTokens = 16;

  const WgmmaArgs& args;
  const Shared& shared;
  Ring& pipe;
  ActivatedRows* activated;  // down of a launch that has both products
  Tiles tiles = shared.tiles(kProduct == Product::down);
  uint32_t rank = ptx::cluster_rank();

  template <class Body>
  __device__ void for_each_tile(Body&& body) const {
    tiles.for_each_part([&](uint32_t item, uint32_t first, uint32_t end) { body(tiles.tile(item, first, end, rank)); });
  }

  __device__ __forceinline__ void run() {
    const uint32_t warp = threadIdx.x / 32;
    if (warp == kWeightsWarp) {
      if (threadIdx.x % 32 == 0) copy_weights();
    } else if (warp == kScalesWarp) {
      if constexpr (kProduct == Product::down && has_token_groups(kOperands)) gpu::wait_for_previous_kernel();
      if constexpr (is_packed(kOperands)) PackedScales<kProduct, kOperands>(args, shared, pipe, tiles).run();
      if constexpr (kOperands == Operands::e4m3_block) copy_scales();
    } else if constexpr (kGathers) {
      gather_tokens();
    } else {
      gpu::wait_for_previous_kernel();
      copy_tokens();
    }
  }

  // A half of the tile is one box of 128 rows. With a gate it is eight times eight rows of the gate and the up rows
  // that belong to them, so that a thread's accumulators of rows r and r + 8 are gate and up of one output.
  __device__ void copy_weights() {
    const int32_t unit = kProduct == Product::gate_up ? 8 : 16;  // of eight rows, in a box
    [[maybe_unused]] bool narrow_before = false;
    for_each_tile([&](const Tile& tile) {
      const auto expert = static_cast<int32_t>(tile.expert);
      const int32_t first = static_cast<int32_t>(tile.index) * 2 * unit;
      // Others want the same weights for the expert's other rows.
      const uint64_t policy = tile.first_row > 0 ? ptx::kEvictNormal : ptx::kEvictFirst;
      if constexpr (S::kPacked) {
        Tile next = tile;
        next.follows_narrow = tile.wide && narrow_before;
        narrow_before = !tile.wide;
        pipe.hand_over(next);
      } else {
        pipe.hand_over(tile);
      }
      for (uint32_t step = tile.first_step; step < tile.end_step; ++step, pipe.advance()) {
        pipe.wait_empty();
        ptx::mbarrier_arrive_expect(pipe.full(), S::kWeightBytes);
        const auto k = static_cast<int32_t>(step * (S::kPacked ? S::kWeightRowBytes : S::kDepth));
        if (tile.shares_weights) {
          const auto half = static_cast<int32_t>(rank);
          ptx::copy_box_5d_multicast(pipe.weights() + rank * (S::kWeightBytes / 2), &args.weights, pipe.full(),
                                     {{k, 0, 0, first + half * unit, expert}}, 0b11, ptx::kEvictNormal);
        } else {
          ptx::copy_box_5d(pipe.weights(), &args.weights, pipe.full(), {{k, 0, 0, first, expert}}, policy);
          ptx::copy_box_5d(pipe.weights() + S::kWeightBytes / 2, &args.weights, pipe.full(),
                           {{k, 0, 0, first + unit, expert}}, policy);
        }
      }
    });
  }

  // A box per lane; who has none arrives alone, as all do that gather.
  __device__ void copy_tokens() {
    const uint32_t box = threadIdx.x - kTokensWarp * 32;
    for_each_tile([&](const Tile& tile) {
      const bool copies = box * kBoxTokens < tile.width;
      if (activated && threadIdx.x / 32 == kTokensWarp) activated->wait(tile.expert);
      const auto slot = static_cast<int32_t>(tile.slot + box * kBoxTokens);
      for (uint32_t step = tile.first_step; step < tile.end_step; ++step, pipe.advance()) {
        pipe.wait_empty();
        if (!copies) {
          ptx::mbarrier_arrive(pipe.full());
          continue;
        }
        ptx::mbarrier_arrive_expect(pipe.full(), kBoxTokens * kRowBytes * S::kTokenRows);
        for (uint32_t row = 0; row < S::kTokenRows; ++row)
          ptx::copy_box_2d(pipe.tokens() + row * pipe.token_bytes() + box * kBoxTokens * kRowBytes, &args.tokens,
                           pipe.full(),
                           static_cast<int32_t>((step * S::kTokenRows + row) * (kRowBytes / S::kTokenValueBytes)), slot,
                           ptx::kEvictNormal);
      }
    });
  }

  // Two warps, four threads to a row, two packets each: warp w has rows 16 i + 8 w + {0 .. 7}. Tokens behind the tile's last
  // one get some row, of which nobody looks at the products. An address is one multiplication and addition, worked out anew
  // for every stage: this loop is what large tiles wait for if it has more to do.
  __device__ void gather_tokens() {
    constexpr uint32_t kRows = S::kMaxTokens / 16;
    const uint32_t lane = threadIdx.x % 32, first = (threadIdx.x / 32 - kTokensWarp) * 8 + lane / 4;
    const uint32_t packet = lane % 4;
    const uint32_t to = first * kRowBytes + (packet ^ first % 8) * 16;
    const auto stride = static_cast<uint32_t>(args.rows.stride);
    const uint32_t row_bytes = args.depth * S::kTokenValueBytes;
    for_each_tile([&](const Tile& tile) {
      const uint32_t slot = tile.slot;
      uint32_t rows[kRows];
#pragma unroll
      for (uint32_t i = 0; i < kRows; ++i)
        rows[i] = static_cast<uint32_t>(max(row_of<kProduct>(args.slots, tile, slot, 16 * i + first), 0));
      const uint32_t width = tile.width - min(tile.width, first / 8 * 8);
      for (uint32_t step = tile.first_step; step < tile.end_step; ++step, pipe.advance()) {
        pipe.wait_empty();
#pragma unroll
        for (uint32_t part = 0; part < S::kTokenRows; ++part) {
          const uint32_t k = (step * S::kTokenRows + part) * kRowBytes + packet * 16;
          const bool inside = k < row_bytes, upper_inside = k + 64 < row_bytes;
          const std::byte* from = unknown(args.rows.data + k);
          const uint32_t at = ptx::shared_address(pipe.tokens()) + part * pipe.token_bytes() + to;
#pragma unroll
          for (uint32_t i = 0; i < kRows; ++i) {
            if (16 * i >= width) break;
            const std::byte* row = from + uint64_t{unknown(rows[i])} * stride;
            ptx::copy_packet(at + i * 16 * kRowBytes, row, inside);
            ptx::copy_packet((at ^ 64) + i * 16 * kRowBytes, row + 64, upper_inside);
          }
        }
        ptx::mbarrier_arrive_after_copies(pipe.full());
      }
    });
  }

  // Scales of a group of 128 of k: of each token, and of the weights' blocks of 128 rows. With a gate these are the gate's
  // block and the one or two that the tile meets in up; else the blocks of its two halves.
  __device__ void copy_scales() {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t groups = Step<kOperands>::num_steps(args.depth), blocks = (args.weight_rows + 127) / 128;
    for_each_tile([&](const Tile& tile) {
      if (activated) activated->wait(tile.expert);
      const uint32_t slot = tile.slot;
      const float* from[kMaxTokens / 32];
#pragma unroll
      for (uint32_t i = 0; i < kMaxTokens / 32; ++i)
        from[i] = unknown(args.token_scales.data +
                          max(row_of<kProduct>(args.slots, tile, slot, lane + i * 32), 0) * args.token_scales.stride);
      uint32_t block = tile.index * 2 + lane;
      if (kProduct == Product::gate_up && lane == 0) block = tile.index;
      if (kProduct == Product::gate_up && lane > 0) block = (args.num_outputs + tile.index * 128) / 128 + lane - 1;
      const float* weights = unknown(args.weight_scales + (int64_t{tile.expert} * blocks + min(block, blocks - 1)) * groups);
#pragma unroll 1
      for (uint32_t step = tile.first_step; step < tile.end_step; ++step, pipe.advance()) {
        pipe.wait_empty();
        if (lane < 3) ptx::copy_word(ptx::shared_address(pipe.scales()) + lane * 4, weights + step, true);
        const uint32_t at = ptx::shared_address(pipe.token_scales()) + lane * 4;
#pragma unroll
        for (uint32_t i = 0; i < kMaxTokens / 32; ++i)
          if (lane + i * 32 < tile.width) ptx::copy_word(at + i * 128, from[i] + step, true);
        ptx::mbarrier_arrive_after_copies(pipe.full());
      }
    });
  }
};

template <Product kFirst, Operands kOperands, Runs kRuns>
__device__ __forceinline__ void produce(const WgmmaLaunch& launch, const Shared& shared) {
  using Down = Producers<Product::down, kOperands>;
  Pipeline<kOperands> pipe;
  if constexpr (kRuns != Runs::down) Producers<kFirst, kOperands>{launch.first, shared, pipe, nullptr}.run();
  if constexpr (kRuns == Runs::down) Down{launch.down, shared, pipe, nullptr}.run();
  if constexpr (kRuns == Runs::both) {
    ActivatedRows activated(launch, shared);
    const bool both = launch.runs_first && launch.runs_down;
    Down{launch.down, shared, pipe, both ? &activated : nullptr}.run();
    if (!both) return;
    constexpr bool kScalesWait = has_token_groups(kOperands);
    const uint32_t warp = threadIdx.x / 32;
    if (warp == Down::kTokensWarp || (kScalesWait && warp == Down::kScalesWarp)) activated.leave(kScalesWait ? 2 : 1);
  }
}

}  // namespace mixlane::experts_gpu
