// experts.wgmma (sm_90): one launch per product, a persistent pair of blocks per two multiprocessors.
#pragma once

#include "ops/experts/wgmma_epilogue.cuh"
#include "ops/experts/wgmma_producers.cuh"
#include "ops/experts/wgmma_ranges.cuh"
#include "ops/experts/wgmma_wide_epilogue.cuh"

namespace mixlane::experts_gpu {

// Of a thread; 128 producers and 256 others share what the launch gave to all: 168 each. More would be waited for forever.
inline constexpr int kProducerRegisters = 40;
inline constexpr int kGroupRegisters = 232;
static_assert(kProducerRegisters + 2 * kGroupRegisters <= 3 * 168);

// The tile's products over `num_steps` stages.
template <Product kProduct, Operands kOperands, int kN>
__device__ void multiply_steps(Pipeline<kOperands>& pipe, const WgmmaArgs& args, const Shared& shared, const Tile& tile,
                               const Place& place, uint32_t num_steps, Accumulators<kN>& sums) {
  if constexpr (kOperands == Operands::bf16) {
    multiply_bf16<kProduct, kN>(pipe, place, num_steps, sums);
  } else if constexpr (is_packed(kOperands)) {
    multiply_packed<kProduct, kN>(pipe, place, num_steps, shared, sums);  // of the file that instantiates it
  } else if constexpr (kOperands == Operands::e4m3_block) {
    const OwnScales<kProduct> own(args, tile, place);
    multiply_e4m3_block<kProduct, kN>(pipe, place, num_steps, own, sums);
  } else {
    multiply_e4m3_channel<kProduct, kN>(pipe, place, num_steps, sums);
  }
}

template <Product kProduct, Operands kOperands, int kN>
__device__ void run_narrow_tile(Pipeline<kOperands>& pipe, const WgmmaArgs& args, const Shared& shared, const Tile& tile,
                                const Place& place) {
  Accumulators<kN> sums;
  const auto multiply = [&](uint32_t first, uint32_t end) {
    multiply_steps<kProduct, kOperands, kN>(pipe, args, shared, tile, place, end - first, sums);
  };
  if constexpr (kN <= static_cast<int>(kRangeWidth)) {
    if (!RangeSums<kN>(args, shared.fixed->plan, tile, place).add_up(multiply, sums)) return;
  } else {
    multiply(tile.first_step, tile.end_step);
  }
  Epilogue<kProduct, kOperands, kN>(args, shared, tile, place).run(sums);
}

// By the width of the tile's tokens. Each has an epilogue of its own: a common one would want the sums of all in the same
// registers, which the assembler pays for with spills in the loops.
template <Product kProduct, Operands kOperands>
__device__ void run_narrow_tile(Pipeline<kOperands>& pipe, const WgmmaArgs& args, const Shared& shared, const Tile& tile,
                                const Place& place) {
  const auto run = [&]<int kN>() {
    if constexpr (kN <= Step<kOperands>::kTokens || (kN > 128 && kN <= Step<kOperands>::kMaxTokens))
      run_narrow_tile<kProduct, kOperands, kN>(pipe, args, shared, tile, place);
  };
  switch (tile.width) {
    case 8: return run.template operator()<8>();
    case 16: return run.template operator()<16>();
    case 24: return run.template operator()<24>();
    case 32: return run.template operator()<32>();
    case 48: return run.template operator()<48>();
    case 64: return run.template operator()<64>();
    case 72: return run.template operator()<72>();
    case 80: return run.template operator()<80>();
    case 96: return run.template operator()<96>();
    case 144: return run.template operator()<144>();
    case 160: return run.template operator()<160>();
    default: return run.template operator()<128>();
  }
}

template <Product kProduct, Operands kOperands>
__device__ void run_wide_tile(Pipeline<kOperands>& pipe, const WgmmaArgs& args, const Tile& tile, const Place& place) {
  float sums[kWideSums];
  if constexpr (kOperands == Operands::bf16)
    multiply_wide_bf16<kProduct>(pipe, place, tile.end_step, sums);
  else
    multiply_wide_e4m3<kProduct>(pipe, place, tile.end_step, sums);
  WideEpilogue<kProduct, kOperands>(args, tile, place).run(sums);
}

// A gate's blocks of scales are outputs' groups; up's are, too, if they begin where groups begin.
template <Product kProduct, Operands kOperands>
__device__ bool has_wide_tiles(const WgmmaArgs& args) {
  if (args.narrow) return false;
  if (kOperands == Operands::e4m3_block && kProduct == Product::gate_up && args.num_outputs % 128 != 0) return false;
  return Step<kOperands>::kHasWide;
}

template <Product kProduct, Operands kOperands>
__device__ __forceinline__ void run_products(const WgmmaArgs& args, const Shared& shared) {
  const Plan& plan = shared.fixed->plan;
  const uint32_t rank = ptx::cluster_rank();
  // Not only for the tokens: blocks that share tiles signal where the first product's blocks do.
  if constexpr (kProduct == Product::down) gpu::wait_for_previous_kernel();
  Pipeline<kOperands> pipe(shared);
  plan.for_each_tile(rank, [&](const Tile& tile) {
    const Place place;
    if constexpr (Step<kOperands>::kHasWide) {
      if (tile.wide) return run_wide_tile<kProduct>(pipe, args, tile, place);
    }
    run_narrow_tile<kProduct, kOperands>(pipe, args, shared, tile, place);
  });
}

template <Product kProduct, Operands kOperands>
__global__ void __launch_bounds__(kNumThreads, 1) experts_wgmma(const MIXLANE_GRID_CONSTANT WgmmaArgs args) {
  extern __shared__ __align__(1024) std::byte memory[];
  Shared shared(memory);
  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&args.weights);
    if (kProduct == Product::down) ptx::prefetch_tensor_map(&args.tokens);
    for (uint32_t stage = 0; stage < kMaxStages; ++stage) {
      ptx::mbarrier_init(&shared.fixed->full[stage], Producers<kProduct, kOperands>::kFullArrivals);
      ptx::mbarrier_init(&shared.fixed->empty[stage], kEmptyArrivals);
    }
    ptx::mbarrier_init_fence();
  }
  // What down waits for is the first product; the row counts are older than that, and so are its weights.
  if (kProduct != Product::down) gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();
  // Wanted once the plan is made; on their way meanwhile.
  if (threadIdx.x == 32 && args.slots.sorted_pairs) ptx::prefetch_line(args.slots.sorted_pairs);
  if (threadIdx.x < 32 && threadIdx.x * 32 <= args.slots.num_experts && args.slots.offsets)
    ptx::prefetch_line(args.slots.offsets + threadIdx.x * 32);
  using Rows = Staging<kProduct, kOperands>;
  constexpr uint32_t kTileOutputs = kProduct == Product::gate_up ? kTileRows / 2 : kTileRows;
  shared.fixed->plan.make<kOperands>(args.slots, has_wide_tiles<kProduct, kOperands>(args), args.depth,
                                     (args.num_outputs + kTileOutputs - 1) / kTileOutputs,
                                     Shared::fixed_bytes() + Rows::kRowBytes + ScalesWorkspace<kOperands>::kBytes,
                                     Rows::kFloats * sizeof(float), StageScales<kOperands>::kPerToken * sizeof(float),
                                     StageScales<kOperands>::kOfWeights * sizeof(float));
  ptx::cluster_arrive();
  ptx::cluster_wait();
  shared.place<kProduct, kOperands>();

  if (threadIdx.x < ptx::kWarpgroupThreads) {
    ptx::lower_registers<kProducerRegisters>();
    Producers<kProduct, kOperands>(args, shared).run();
    __syncwarp();
  } else {
    ptx::raise_registers<kGroupRegisters>();
    run_products<kProduct, kOperands>(args, shared);
  }
  // The other block may still signal here.
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

}  // namespace mixlane::experts_gpu
