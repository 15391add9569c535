// The warps of experts.wgmma that fill stages. Each role walks all stages by itself.
#pragma once

#include "ops/experts/wgmma_pipeline.cuh"

namespace mixlane::experts_gpu {

template <Product kProduct, Operands kOperands>
class PackedScales;  // wgmma_packed_scales.cuh

template <Product kProduct, Operands kOperands>
struct Producers {
  using Ring = Pipeline<kOperands>;
  using S = Step<kOperands>;
  static constexpr bool kGathers = kProduct != Product::down;
  static constexpr uint32_t kWeightsWarp = 0;
  static constexpr uint32_t kScalesWarp = 1;
  static constexpr uint32_t kTokensWarp = 2;  // and the next one if they gather
  static constexpr uint32_t kFullArrivals = 1 + (kGathers ? 64 : 1) + StageScales<kOperands>::kArrivals;
  static constexpr uint32_t kBoxTokens = 16;

  const WgmmaArgs& args;
  const Shared& shared;
  const Plan& plan;
  uint32_t rank;

  __device__ Producers(const WgmmaArgs& args_, const Shared& shared_)
      : args(args_), shared(shared_), plan(shared_.fixed->plan), rank(ptx::cluster_rank()) {}

  __device__ void run() const {
    const uint32_t warp = threadIdx.x / 32;
    if (warp == kWeightsWarp) {
      if (threadIdx.x % 32 == 0) copy_weights();
    } else if (warp == kScalesWarp) {
      if constexpr (is_packed(kOperands)) PackedScales<kProduct, kOperands>(args, shared).run();
      if constexpr (kProduct == Product::down) gpu::wait_for_previous_kernel();
      if constexpr (kOperands == Operands::e4m3_block) copy_scales();
    } else if constexpr (kGathers) {
      gather_tokens();
    } else if (warp == kTokensWarp) {
      gpu::wait_for_previous_kernel();
      if (threadIdx.x % 32 == 0) copy_tokens();
    }
  }

  // A half of the tile is one box of 128 rows. With a gate it is eight times eight rows of the gate and the up rows
  // that belong to them, so that a thread's accumulators of rows r and r + 8 are gate and up of one output.
  __device__ void copy_weights() const {
    Ring pipe(shared);
    const int32_t unit = kProduct == Product::gate_up ? 8 : 16;  // of eight rows, in a box
    plan.for_each_tile(rank, [&](const Tile& tile) {
      const auto expert = static_cast<int32_t>(tile.expert);
      const int32_t first = static_cast<int32_t>(tile.index) * 2 * unit;
      // Others want the same weights for the expert's other rows.
      const uint64_t policy = tile.first_row > 0 ? ptx::kEvictNormal : ptx::kEvictFirst;
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

  __device__ void copy_tokens() const {
    Ring pipe(shared);
    plan.for_each_tile(rank, [&](const Tile& tile) {
      const auto slot = static_cast<int32_t>(slot_of(args.slots, tile));
      const uint32_t num_boxes = (tile.width + kBoxTokens - 1) / kBoxTokens;
      for (uint32_t step = tile.first_step; step < tile.end_step; ++step, pipe.advance()) {
        pipe.wait_empty();
        ptx::mbarrier_arrive_expect(pipe.full(), num_boxes * kBoxTokens * kRowBytes * S::kTokenRows);
        for (uint32_t row = 0; row < S::kTokenRows; ++row)
          for (uint32_t box = 0; box < num_boxes; ++box)
            ptx::copy_box_2d(pipe.tokens() + row * pipe.token_bytes() + box * kBoxTokens * kRowBytes, &args.tokens,
                             pipe.full(),
                             static_cast<int32_t>((step * S::kTokenRows + row) * (kRowBytes / S::kTokenValueBytes)),
                             slot + static_cast<int32_t>(box * kBoxTokens), ptx::kEvictNormal);
      }
    });
  }

  // Two warps, eight threads to a row: warp w has rows 8 i + 4 w + {0, 1, 2, 3}. Tokens behind the tile's last one get some
  // row, of which nobody looks at the products.
  __device__ void gather_tokens() const {
    Ring pipe(shared);
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t packet = lane % 8;
    const uint32_t row_in_eight = (threadIdx.x / 32 - kTokensWarp) * 4 + lane / 8;
    const uint32_t to = row_in_eight * kRowBytes + (packet ^ row_in_eight) * 16;
    const auto stride = static_cast<uint32_t>(args.rows.stride);
    plan.for_each_tile(rank, [&](const Tile& tile) {
      const uint32_t slot = slot_of(args.slots, tile);
      uint32_t rows[S::kMaxTokens / 8];
#pragma unroll
      for (uint32_t i = 0; i < S::kMaxTokens / 8; ++i)
        rows[i] = static_cast<uint32_t>(max(row_of<kProduct>(args.slots, tile, slot, 8 * i + row_in_eight), 0));
      for (uint32_t step = tile.first_step; step < tile.end_step; ++step, pipe.advance()) {
        pipe.wait_empty();
#pragma unroll
        for (uint32_t part = 0; part < S::kTokenRows; ++part) {
          const uint32_t k = (step * S::kTokenRows + part) * kRowBytes + packet * 16;
          const bool inside = k < args.depth * S::kTokenValueBytes;
          const std::byte* from = args.rows.data + (inside ? k : 0);
          const uint32_t at = ptx::shared_address(pipe.tokens()) + part * pipe.token_bytes() + to;
#pragma unroll
          for (uint32_t i = 0; i < S::kMaxTokens / 8; ++i) {
            if (8 * i >= tile.width) break;
            ptx::copy_packet(at + i * 8 * kRowBytes, from + uint64_t{unknown(rows[i])} * stride, inside);
          }
        }
        ptx::mbarrier_arrive_after_copies(pipe.full());
      }
    });
  }

  // Scales of a group of 128 of k: of each token, and of the weights' blocks of 128 rows. With a gate these are the gate's
  // block and the one or two that the tile meets in up; else the blocks of its two halves.
  __device__ void copy_scales() const {
    Ring pipe(shared);
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t groups = plan.num_steps, blocks = (args.weight_rows + 127) / 128;
    plan.for_each_tile(rank, [&](const Tile& tile) {
      const uint32_t slot = slot_of(args.slots, tile);
      const float* from[kMaxTokens / 32];
#pragma unroll
      for (uint32_t i = 0; i < kMaxTokens / 32; ++i)
        from[i] = args.token_scales.data +
                  max(row_of<kProduct>(args.slots, tile, slot, lane + i * 32), 0) * args.token_scales.stride;
      uint32_t block = tile.index * 2 + lane;
      if (kProduct == Product::gate_up && lane == 0) block = tile.index;
      if (kProduct == Product::gate_up && lane > 0) block = (args.num_outputs + tile.index * 128) / 128 + lane - 1;
      const float* weights = args.weight_scales + (int64_t{tile.expert} * blocks + min(block, blocks - 1)) * groups;
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

}  // namespace mixlane::experts_gpu
