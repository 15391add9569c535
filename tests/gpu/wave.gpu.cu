#include "gpu/launch.hpp"
#include "gpu/reduce.cuh"
#include "wave.hpp"

namespace mixlane::test {
namespace {

template <int kSize>
__global__ void wave_operations(const uint32_t* values, WaveResult* results) {
  using W = gpu::Wave<kSize>;
  const uint32_t value = values[threadIdx.x];
  WaveResult result;
  result.ballot = W::ballot(value % 2 == 1);
  result.match = W::template match_any<kMatchBits>(value & ((1u << kMatchBits) - 1));
  result.below = W::lanes_below();
  result.lane = W::lane();
  result.wave = W::index_in_block();
  result.from_mirror = W::shuffle(value, kSize - 1 - static_cast<int>(W::lane()));
  result.from_below = W::shuffle_up(value, kUpDistance);
  result.sum_below = W::inclusive_sum(value);
  const uint32_t two[2] = {value, value * value};
  W::inclusive_sums(two, result.sums_below);
  result.largest = gpu::wave_max<kSize>(value);
  result.sum = gpu::wave_sum<kSize>(value);
  results[threadIdx.x] = result;
}

__global__ void copy_packets(const gpu::Packet* from, gpu::Packet* to, int num_packets, uint32_t* added) {
  __shared__ uint32_t counts[4];
  if (threadIdx.x < 4) counts[threadIdx.x] = 0;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < num_packets; i += static_cast<int>(blockDim.x)) {
    gpu::store_packet(to + i, gpu::load_streaming_packet(from + i));
    gpu::add_shared_if(i % 3 == 0, &counts[i % 4], 1);
  }
  __syncthreads();
  if (threadIdx.x < 4) gpu::store_streaming(added + threadIdx.x, counts[threadIdx.x]);
}

__global__ void grid_rounds(int rounds, uint32_t* words, uint32_t* barrier, uint32_t* wrong) {
  for (int round = 1; round <= rounds; ++round) {
    if (threadIdx.x == 0) words[blockIdx.x] = static_cast<uint32_t>(round);
    gpu::grid_barrier(barrier);
    for (uint32_t block = threadIdx.x; block < gridDim.x; block += blockDim.x)
      if (*static_cast<volatile uint32_t*>(words + block) != static_cast<uint32_t>(round)) atomicAdd(wrong, 1u);
    gpu::grid_barrier(barrier);
  }
}

__global__ void nothing() {}

}  // namespace

void launch_wave_operations(int wave_size, const uint32_t* values, WaveResult* results, Stream stream) {
  const auto kernel = wave_size == 8    ? wave_operations<8>
                      : wave_size == 16 ? wave_operations<16>
                      : wave_size == 32 ? wave_operations<32>
                                        : wave_operations<gpu::kHardwareWave>;
  gpu::launch(kernel, {.variant = "wave operations", .num_threads = kWaveThreads}, stream, values, results);
}

void launch_packets(const void* from, void* to, int num_packets, uint32_t* added, Stream stream) {
  gpu::launch(copy_packets, {.variant = "packets", .num_threads = 64}, stream, static_cast<const gpu::Packet*>(from),
              static_cast<gpu::Packet*>(to), num_packets, added);
}

void launch_grid_rounds(uint32_t num_blocks, int rounds, uint32_t* words, uint32_t* barrier, uint32_t* wrong,
                        Stream stream) {
  gpu::launch(grid_rounds, {.variant = "grid rounds", .num_blocks = num_blocks, .num_threads = 64, .cooperative = true},
              stream, rounds, words, barrier, wrong);
}

void launch_shape(uint32_t num_blocks, uint32_t num_threads, int64_t shared_bytes, Stream stream) {
  gpu::launch(
      nothing,
      {.variant = "test.nothing", .num_blocks = num_blocks, .num_threads = num_threads, .shared_bytes = shared_bytes},
      stream);
}

}  // namespace mixlane::test
