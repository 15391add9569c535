// align.multi_phase for many pairs: every block sorts its contiguous chunk in a few large tiles, so that runs are long.
//
//   sort      the first tile is sorted into shared memory while ids of the next one arrive; the codes of the second stay in
//             registers (`register_tile.cuh`); others are counted
//   barrier   meanwhile the codes in registers become positions
//   columns   a wave per code turns the blocks' counts into sums over the blocks before
//   barrier
//   write     the first tile, as runs of consecutive slots (`runs.cuh`); then the second takes its place; of more the ids
//   are
//             read again
#pragma once

#include "ops/align/multi_phase.cuh"
#include "ops/align/register_tile.cuh"
#include "ops/align/runs.cuh"

namespace mixlane::align_gpu {

// The block's shared memory, with tiles of so many rows of each wave.
template <class Sorter>
int64_t many_shared_bytes(uint32_t num_codes, uint32_t rows) {
  const int64_t stride = int64_t{num_quads(num_codes)} * 4;
  return Sorter::shared_bytes(num_codes) + 2 * stride * 4 + RunWriter<typename Sorter::Plan>::shared_bytes(stride) +
         int64_t{Sorter::places_of(rows * Sorter::kThreads, num_codes)} * 2;
}

// One block's sort of its chunk.
template <class Sorter>
class ManyPairs {
 public:
  using Plan = typename Sorter::Plan;
  using Held = typename Sorter::Held;
  __device__ ManyPairs(std::byte* shared, const KernelArgs& args, uint32_t rows, const Chunk& chunk)
      : args_(args),
        chunk_(chunk),
        sorter_(shared, args, rows, chunk.end),
        runs_(reinterpret_cast<uint32_t*>(shared + Sorter::shared_bytes(args.num_codes))),
        writer_(args, sorter_.plan, runs_ + 2 * sorter_.plan.stride),
        staged_(reinterpret_cast<uint16_t*>(runs_ + 3 * sorter_.plan.stride + 4)),
        num_tiles_(max(1u, (chunk.end - chunk.begin + sorter_.num_pairs() - 1) / sorter_.num_pairs())) {}

  __device__ Plan plan() const { return sorter_.plan; }

  // Counts all tiles, of which the first is placed and the second held: what is held is never larger than what was before.
  // Returns the pairs of this thread's codes.
  __device__ Quad sort(Held& held) const {
    held.set = 0;
    sorter_.load(held, first_of(0));
    __syncthreads();
    Quad in_block = sorter_.counts(held);
#pragma unroll 1
    for (uint32_t turn = 1; turn < num_tiles_; ++turn) {
      if (turn == 1) sorter_.spread(held, in_block, runs_of(0));
      __syncthreads();
      const uint32_t first = first_of(turn + 1 < num_tiles_ ? turn + 1 : 1);
      if (turn == 1)
        sorter_.place_and_load(held, staged_, first);
      else
        sorter_.load(held, first);
      __syncthreads();
      in_block.add(sorter_.counts(held));
    }
    return in_block;
  }

  // Where the held tile's pairs go in it.
  __device__ void spread(const Held& held) const {
    sorter_.spread(held, sorter_.counts(held), runs_of(num_tiles_ == 1 ? 0 : 1));
    __syncthreads();
  }

  // What needs no slots yet: the second tile of two, or the only one.
  __device__ void rank(Held& held) const {
    if (num_tiles_ <= 2) sorter_.rank(held);
    if (num_tiles_ == 1) sorter_.put(held, staged_);
  }

  // `slots` of this thread's codes' first pairs of the block. `write_rest` needs nothing of this. False if two pairs have
  // changed places.
  template <class WriteRest>
  __device__ bool write(Held& held, Quad slots, WriteRest&& write_rest) const {
    bool in_order = write_tile(0, runs_of(0), slots);
    write_rest();
#pragma unroll 1
    for (uint32_t tile = 1; tile < num_tiles_; ++tile) {
      slots.add(counts_of(runs_of(tile + 1)));
      __syncthreads();
      if (tile + 1 < num_tiles_) {
        sorter_.place_and_load(held, staged_, first_of(tile + 1));
        __syncthreads();
        sorter_.spread(held, sorter_.counts(held), runs_of(tile + 1));
      } else {
        sorter_.put(held, staged_);
      }
      __syncthreads();
      in_order &= write_tile(tile, runs_of(tile), slots);
      if (tile + 2 == num_tiles_) sorter_.rank(held);
    }
    return in_order;
  }

  // Everything once more, by what never changes the order.
  __device__ void write_exactly(Quad slots) const {
#pragma unroll 1
    for (uint32_t tile = 0; tile < num_tiles_; ++tile) {
      Held held;
      __syncthreads();
      sorter_.take_exactly(held, first_of(tile), nullptr);
      __syncthreads();
      const Quad in_tile = sorter_.counts(held);
      sorter_.spread(held, in_tile, runs_of(0));
      __syncthreads();
      sorter_.take_exactly(held, first_of(tile), staged_);
      write_tile(tile, runs_of(0), slots);
      slots.add(in_tile);
    }
  }

 private:
  __device__ uint32_t first_of(uint32_t tile) const { return chunk_.begin + tile * sorter_.num_pairs(); }
  // A tile's runs, and those of the one after it.
  __device__ uint32_t* runs_of(uint32_t tile) const { return runs_ + tile % 2 * sorter_.plan.stride; }
  // The pairs of this thread's codes in them.
  __device__ Quad counts_of(const uint32_t* runs) const {
    Quad counts;
    if (threadIdx.x < num_quads(args_.num_codes)) {
#pragma unroll
      for (uint32_t j = 0; j < 4; ++j) counts.of[j] = runs[threadIdx.x * 4 + j] >> 16;
    }
    return counts;
  }

  __device__ bool write_tile(uint32_t tile, const uint32_t* runs, const Quad& slots) const {
    writer_.begin(runs, slots);
    __syncthreads();
    return writer_.write(staged_, runs, first_of(tile));
  }

  const KernelArgs& args_;
  Chunk chunk_;
  Sorter sorter_;
  uint32_t* runs_;  // [2][stride]
  RunWriter<Plan> writer_;
  uint16_t* staged_;  // numbers of the sorted tile's pairs
  uint32_t num_tiles_;
};

template <class Sorter>
__device__ __noinline__ void write_exactly(std::byte* shared, const KernelArgs& args, uint32_t rows, const Chunk chunk,
                                           const Quad slots) {
  ManyPairs<Sorter>(shared, args, rows, chunk).write_exactly(slots);
}

template <class Sorter>
__global__ void __launch_bounds__(Sorter::kThreads, 1)
    align_multi_phase_many(const MIXLANE_GRID_CONSTANT KernelArgs args, uint32_t rows) {
  using Plan = typename Sorter::Plan;
  extern __shared__ __align__(128) std::byte shared[];
  const uint32_t num_counted = count_pairs(args.source);
  const Chunk chunk(num_counted, even_share(num_counted, gridDim.x));
  const ManyPairs<Sorter> pairs(shared, args, rows, chunk);
  const Plan plan = pairs.plan();
  const Matrix matrix(args.workspace, args.num_codes, gridDim.x);

  plan.clear_facts();
  __syncthreads();
  typename Sorter::Held held;
  const Quad in_block = pairs.sort(held);
  publish_counts(args, plan, matrix, in_block);
  __syncthreads();
  uint32_t arrived = threadIdx.x == 0 ? gpu::arrive_at_grid_barrier(args.barrier) : 0;
  pairs.spread(held);
  // One wave goes on to the second barrier while the others rank.
  if (threadIdx.x < gpu::kHardwareWave) {
    if (threadIdx.x == 0) gpu::wait_at_grid_barrier(args.barrier, arrived);
    Plan::Wave::sync();
    sum_columns<Plan, 2, 5>(matrix, args.num_codes, gpu::kHardwareWave / Plan::kWave);
    Plan::Wave::sync();
    if (threadIdx.x == 0) arrived = gpu::arrive_at_grid_barrier(args.barrier);
  }
  pairs.rank(held);
  if (threadIdx.x == 0) gpu::wait_at_grid_barrier(args.barrier, arrived);
  __syncthreads();

  const Quad slots = plan_block(args, plan, matrix);
  __syncthreads();
  const bool in_order = pairs.write(held, slots, [&] { write_places(args, plan, matrix); });
  if (gpu::kAtomicsInLaneOrder && __syncthreads_or(!in_order)) write_exactly<Sorter>(shared, args, rows, chunk, slots);
}

}  // namespace mixlane::align_gpu
