// experts.wgmma (sm_90): one launch of both products or one of each, a persistent pair of blocks per two multiprocessors.
#pragma once

#include "ops/experts/wgmma/decoders.cuh"
#include "ops/experts/wgmma/epilogue.cuh"
#include "ops/experts/wgmma/producers.cuh"
#include "ops/experts/wgmma/ranges.cuh"
#include "ops/experts/wgmma/wide_epilogue.cuh"

namespace mixlane::experts_gpu {

// Of a thread. Warpgroups share what the launch gave to all, 168 for each thread of three and 128 of four. More would be
// waited for forever.
inline constexpr int kProducerRegisters = 40;
template <Operands kOperands>
inline constexpr int kDecoderRegisters = kOperands == Operands::e2m1 ? 40 : 24;
template <Operands kOperands>
inline constexpr int kGroupRegisters = !is_packed(kOperands)         ? 232
                                       : kOperands == Operands::e2m1 ? 216
                                                                     : 224;
static_assert(kProducerRegisters + 2 * kGroupRegisters<Operands::bf16> <= 3 * 168);
static_assert(kProducerRegisters + kDecoderRegisters<Operands::e2m1> + 2 * kGroupRegisters<Operands::e2m1> <= 4 * 128);
static_assert(kDecoderRegisters<Operands::e2m1> + 2 * kGroupRegisters<Operands::e2m1> ==
              kDecoderRegisters<Operands::e2m1_e4m3> + 2 * kGroupRegisters<Operands::e2m1_e4m3>);

// The tile's products over `num_steps` stages.
template <Product kProduct, Operands kOperands, int kN>
__device__ void multiply_steps(Pipeline<kOperands>& pipe, const Shared& shared, const Place& place,
                               const OwnScales<kProduct>& own, uint32_t num_steps, Accumulators<kN>& sums) {
  if constexpr (kOperands == Operands::bf16) {
    multiply_bf16<kProduct, kN>(pipe, place, num_steps, sums);
  } else if constexpr (is_packed(kOperands)) {
    multiply_packed<kProduct, kN>(pipe, place, num_steps, shared, sums);  // of the file that instantiates it
  } else if constexpr (kOperands == Operands::e4m3_block) {
    multiply_e4m3_block<kProduct, kN>(pipe, place, num_steps, own, sums);
  } else {
    multiply_e4m3_channel<kProduct, kN>(pipe, place, num_steps, sums);
  }
}

template <Runs kRuns>
__device__ bool runs_first(const WgmmaLaunch& launch) {
  return kRuns == Runs::both ? launch.runs_first : kRuns == Runs::first;
}
template <Runs kRuns>
__device__ bool runs_down(const WgmmaLaunch& launch) {
  return kRuns == Runs::both ? launch.runs_down : kRuns == Runs::down;
}

// The multiplying warps' work on one product.
template <Product kProduct, Operands kOperands, Runs kRuns>
class Consumers {
 public:
  // `group`: Place's, the same for all lanes.
  __device__ Consumers(const WgmmaLaunch& launch, const Shared& shared, uint32_t group, Pipeline<kOperands>& pipe)
      : launch_(launch), shared_(shared), group_(group), pipe_(pipe) {}

  __device__ __forceinline__ void run() {
    StoredTiles stored(launch_.state->finished);
    shared_.tiles(kIndex).for_each_part([&](uint32_t, uint32_t, uint32_t) { run_next(stored); });
    if constexpr (kRuns == Runs::both) stored.tell();
  }

 private:
  static constexpr uint32_t kIndex = kProduct == Product::down ? 1 : 0;

  __device__ __forceinline__ void run_next(StoredTiles& stored) {
    const Place place{.group = group_};
    // The same for all lanes, which the compiler believes now: stages and addresses go to uniform registers. Tiles stay in
    // shared memory: the products want the registers.
    const Tile& tile = fixed().tiles[__shfl_sync(~0u, pipe_.take_over(), 0)];
    if (tile.wide) return run_wide(tile, place, stored);
    run_narrow(tile, place, stored);
  }

  __device__ const WgmmaArgs& args() const { return kProduct == Product::down ? launch_.down : launch_.first; }
  // Between a tile's products and its epilogue.
  template <class Sums>
  __device__ void before_epilogue(Sums& sums, StoredTiles& stored) const {
    if constexpr (kRuns == Runs::both && kProduct != Product::down) stored.tell_if_two();
    if constexpr (kRuns == Runs::both && kProduct == Product::down) {
      if (!*reinterpret_cast<const volatile uint32_t*>(&fixed().late)) return;
      float* values = reinterpret_cast<float*>(&sums);
      asm volatile("");  // a branch: no selection from what is there and what is never wanted
#pragma unroll
      for (uint32_t i = 0; i < sizeof(Sums) / sizeof(float); ++i) values[i] = __int_as_float(0x7fffffff);
    }
  }
  __device__ void after_epilogue(const Tile& tile, StoredTiles& stored) const {
    if (kRuns == Runs::both && kProduct != Product::down && launch_.runs_down) stored.add(tile);
  }

  template <int kN>
  __device__ __forceinline__ void run_narrow(const Tile& tile, const Place& place, StoredTiles& stored) {
    Accumulators<kN> sums;
    const OwnScales<kProduct> own(args(), tile, place);
    const auto multiply = [&](uint32_t first, uint32_t end) {
      multiply_steps<kProduct, kOperands, kN>(pipe_, shared_, place, own, end - first, sums);
    };
    if constexpr (kN <= static_cast<int>(kRangeWidth)) {
      RangeSums<kN> ranges(args(), fixed().plan.products[kIndex], launch_.state->shares[kIndex], launch_.status, tile,
                           place);
      if (!ranges.add_up(multiply, sums)) return;
    } else {
      multiply(tile.first_step, tile.end_step);
    }
    before_epilogue(sums, stored);
    Epilogue<kProduct, kOperands, kN>(args(), shared_, tile, place).run(sums);
    after_epilogue(tile, stored);
  }

  // By the width of the tile's tokens. Each has an epilogue of its own: a common one would want the sums of all in the same
  // registers, which the assembler pays for with spills in the loops.
  __device__ __forceinline__ void run_narrow(const Tile& tile, const Place& place, StoredTiles& stored) {
    const auto run = [&]<int kN>() {
      if constexpr (kN <= Step<kOperands>::kTokens || (kN > 128 && kN <= Step<kOperands>::kMaxTokens))
        run_narrow<kN>(tile, place, stored);
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

  __device__ __forceinline__ void run_wide(const Tile& tile, const Place& place, StoredTiles& stored) {
    float sums[kWideSums];
    if constexpr (is_packed(kOperands)) pipe_.begin_wide(tile);
    if constexpr (kOperands == Operands::bf16)
      multiply_wide_bf16<kProduct>(pipe_, group_, tile.end_step, sums);
    else if constexpr (is_packed(kOperands))
      multiply_wide_packed<kProduct>(pipe_, group_, tile.end_step, sums);  // the same
    else
      multiply_wide_e4m3<kProduct>(pipe_, group_, place, tile.end_step, sums);
    before_epilogue(sums, stored);
    if constexpr (is_packed(kOperands))
      WideEpilogue<kProduct, kOperands>(args(), shared_, tile, Place{.group = group_})
          .run(sums);  // no register for it meanwhile
    else
      WideEpilogue<kProduct, kOperands>(args(), shared_, tile, place).run(sums);
    after_epilogue(tile, stored);
  }

  const WgmmaLaunch& launch_;
  const Shared& shared_;
  const uint32_t group_;
  Pipeline<kOperands>& pipe_;
};

template <Product kFirst, Operands kOperands, Runs kRuns>
__device__ __forceinline__ void consume(const WgmmaLaunch& launch, const Shared& shared) {
  // What down alone waits for: not only tokens, but blocks that share tiles signal where the first product's blocks do.
  gpu::wait_for_previous_kernel();
  // Here, where the compiler sees that all lanes are together: it goes to a uniform register then, and with it all that the
  // products' descriptors are made of.
  const uint32_t group = __shfl_sync(~0u, threadIdx.x / ptx::kWarpgroupThreads, 0) - 1;
  Pipeline<kOperands> pipe;
  if constexpr (kRuns != Runs::down) Consumers<kFirst, kOperands, kRuns>(launch, shared, group, pipe).run();
  if constexpr (kRuns != Runs::first) Consumers<Product::down, kOperands, kRuns>(launch, shared, group, pipe).run();
}

template <Operands kOperands, Runs kRuns>
__device__ __forceinline__ void decode(const Shared& shared) {
  Pipeline<kOperands> pipe;
  if constexpr (kRuns != Runs::down) Decoders<kOperands>(shared, pipe).run(shared.tiles(0));
  if constexpr (kRuns != Runs::first) Decoders<kOperands>(shared, pipe).run(shared.tiles(1));
}

// A gate's blocks of scales are outputs' groups; up's are, too, if they begin where groups begin.
template <Product kProduct, Operands kOperands>
__device__ bool has_wide_tiles(const WgmmaArgs& args, bool narrow) {
  if (narrow) return false;
  if (kOperands == Operands::e4m3_block && kProduct == Product::gate_up && args.num_outputs % 128 != 0) return false;
  return true;
}

// By one thread.
template <Product kProduct, Operands kOperands>
__device__ void set_schedule(const WgmmaArgs& args, const WgmmaLaunch& launch, Schedule& schedule) {
  constexpr uint32_t kOutputs = kProduct == Product::gate_up ? kTileRows / 2 : kTileRows;
  schedule.set<kOperands>(has_wide_tiles<kProduct, kOperands>(args, launch.narrow), launch.batch_invariant, args.depth,
                          (args.num_outputs + kOutputs - 1) / kOutputs);
}

__device__ inline void meet_cluster() {
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

// The lines of row counts and offsets that expert `first` and the next 31 have.
__device__ inline void prefetch_slots(const Slots& slots, uint32_t first) {
  if (slots.counts && first < slots.num_experts) ptx::prefetch_line(slots.counts + first);
  if (slots.offsets && first <= slots.num_experts) ptx::prefetch_line(slots.offsets + first);
}

template <Product kFirst, Operands kOperands, Runs kRuns>
__global__ void __launch_bounds__(kNumThreads<kOperands>, 1) experts_wgmma(const MIXLANE_GRID_CONSTANT WgmmaLaunch launch) {
  const Slots& slots = launch.first.slots;
  gpu::prefetch_args(launch);
  const Shared shared{slots.num_experts};
  if (threadIdx.x == 0) {
    if (runs_first<kRuns>(launch)) ptx::prefetch_tensor_map(&launch.first.weights);
    if (runs_down<kRuns>(launch)) {
      ptx::prefetch_tensor_map(&launch.down.weights);
      ptx::prefetch_tensor_map(&launch.down.tokens);
    }
    for (uint32_t stage = 0; stage < kMaxStages; ++stage) {
      ptx::mbarrier_init(&fixed().full[stage], Producers<Product::down, kOperands>::kFullArrivals);
      ptx::mbarrier_init(&fixed().empty[stage], kEmptyArrivals);
    }
    if constexpr (is_packed(kOperands)) {
      for (uint32_t slot = 0; slot < kDecodedSlots; ++slot) {
        ptx::mbarrier_init(&fixed().decoded[slot], ptx::kWarpgroupThreads / 32);
        ptx::mbarrier_init(&fixed().used[slot], kMultiplyingWarps);
      }
      ptx::mbarrier_init(&fixed().wide_begins, kMultiplyingWarps);
    }
    for (uint64_t& tile : fixed().handed_over) ptx::mbarrier_init(&tile, 1);
    ptx::mbarrier_init_fence();
    set_schedule<kFirst, kOperands>(launch.first, launch, fixed().plan.products[0]);
    set_schedule<Product::down, kOperands>(launch.down, launch, fixed().plan.products[1]);
    fixed().late = 0;
  }
  // On their way before who writes them has ended: to L2, where what is written meets what was read.
  if (threadIdx.x == 32 && slots.sorted_pairs) ptx::prefetch_line(slots.sorted_pairs);
  if (threadIdx.x >= 64 && threadIdx.x < 96) prefetch_slots(slots, (threadIdx.x - 64) * 32);
  // What down alone waits for is the first product; the row counts are older than that, and so are its weights.
  if (runs_first<kRuns>(launch)) gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();
  fixed().plan.make<kOperands>(slots, shared.other_bytes<kOperands>());
  if (threadIdx.x == kNumThreads<kOperands> - 1) shared.place_ring<kOperands>();
  __syncthreads();
  const bool apart = fixed().plan.apart;
  if (!apart) meet_cluster();

  if (threadIdx.x < ptx::kWarpgroupThreads) {
    ptx::lower_registers<kProducerRegisters>();
    produce<kFirst, kOperands, kRuns>(launch, shared);
    __syncwarp();
  } else if (is_packed(kOperands) && threadIdx.x >= (1 + kNumGroups) * ptx::kWarpgroupThreads) {
    ptx::lower_registers<kDecoderRegisters<kOperands>>();
    if constexpr (is_packed(kOperands)) {
      if (has_decoders()) decode<kOperands, kRuns>(shared);
    }
    __syncwarp();
  } else {
    ptx::raise_registers<kGroupRegisters<kOperands>>();
    consume<kFirst, kOperands, kRuns>(launch, shared);
  }
  // The other block may still signal here.
  if (!apart) meet_cluster();
}

}  // namespace mixlane::experts_gpu
