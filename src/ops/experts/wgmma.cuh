// experts.wgmma (sm_90): one launch per product, a persistent pair of blocks per two multiprocessors.
#pragma once

#include "ops/experts/wgmma_epilogue.cuh"
#include "ops/experts/wgmma_producers.cuh"

namespace mixlane::experts_gpu {

inline constexpr int kProducerRegisters = 40;
inline constexpr int kGroupRegisters = 232;

template <Product kProduct, Operands kOperands>
__device__ void run_products(const WgmmaArgs& args, const Shared& shared) {
  const Place place;
  const Plan& plan = shared.fixed->plan;
  const uint32_t rank = ptx::cluster_rank();
  constexpr uint32_t kBlockDepth = Producers<kProduct, kOperands>::kBlockDepth;
  const uint32_t num_blocks = (args.depth + kBlockDepth - 1) / kBlockDepth;
  Pipeline pipe(shared);
  for (uint32_t item = blockIdx.x / kClusterBlocks; item < plan.num_items; item += gridDim.x / kClusterBlocks) {
    const Tile tile = plan.tile(item, rank);
    Accumulators sums;
    multiply_tile<kProduct, kOperands>(pipe, args, tile, place, num_blocks, sums);
    Epilogue<kProduct, kOperands>(args, shared, tile, place).run(sums);
  }
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
  // What down waits for is gate_up; the row counts are older, and so are its weights.
  if (kProduct == Product::gate_up) gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();
  const uint32_t tile_outputs = args.gated ? kTileRows / 2 : kTileRows;
  shared.fixed->plan.make(args.slots, (args.num_outputs + tile_outputs - 1) / tile_outputs, Shared::rest_bytes());
  ptx::cluster_arrive();
  ptx::cluster_wait();
  shared.place();

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
