#include "device_work.hpp"
#include "gpu/launch.hpp"
#include "gpu/numeric.cuh"
#include "gpu/peer.cuh"

namespace mixlane::bench {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kMaxRowBlocks = 1024;
constexpr int kOctet = 8;  // bf16 values of a packet

__global__ void bench_mark(uint64_t* to) { *to = gpu::clock_ns(); }

// One thread per rank.
__global__ void bench_gate(const MIXLANE_GRID_CONSTANT DeviceGate gate, uint64_t* to) {
  const int peer = static_cast<int>(threadIdx.x);
  const uint32_t pass = *gate.passes + 1;
  __syncthreads();
  if (peer == 0) *gate.passes = pass;
  if (peer < gate.num_ranks) {
    gpu::store_release<gpu::Scope::system>(gate.words[peer] + gate.rank, pass);
    const uint64_t since = gpu::clock_ns();
    const uint32_t* const word = gate.words[gate.rank] + peer;
    while (static_cast<int32_t>(gpu::load_acquire<gpu::Scope::system>(word) - pass) < 0 &&
           gpu::clock_ns() - since < gate.limit_ns) {
    }
  }
  __syncthreads();
  if (peer == 0) *to = gpu::clock_ns();
}

__global__ void __launch_bounds__(kThreads) bench_gather_rows(const MIXLANE_GRID_CONSTANT GatherRows args) {
  const int64_t packets = args.bytes / 16;
  for (int32_t row = static_cast<int32_t>(blockIdx.x); row < args.num_rows; row += static_cast<int32_t>(gridDim.x)) {
    const auto* const from = reinterpret_cast<const uint4*>(args.from + args.index[row] * args.bytes);
    auto* const to = reinterpret_cast<uint4*>(args.to + row * args.bytes);
    for (int64_t i = threadIdx.x; i < packets; i += kThreads) to[i] = from[i];
  }
}

__global__ void __launch_bounds__(kThreads) bench_add_rows(const MIXLANE_GRID_CONSTANT AddRows args) {
  const int64_t octets = args.hidden / kOctet;
  for (int32_t row = static_cast<int32_t>(blockIdx.x); row < args.num_rows; row += static_cast<int32_t>(gridDim.x))
    for (int64_t i = threadIdx.x; i < octets; i += kThreads) {
      float sums[kOctet] = {};
      for (int32_t r = 0; r < args.num_ranks; ++r) {
        const int32_t at = args.index[int64_t{row} * args.num_ranks + r];
        if (at < 0) continue;
        const uint4 packet = reinterpret_cast<const uint4*>(args.from + at * args.hidden)[i];
        const uint32_t words[4] = {packet.x, packet.y, packet.z, packet.w};
#pragma unroll
        for (int v = 0; v < kOctet; ++v) sums[v] += gpu::bf16_to_f32(v % 2 ? words[v / 2] >> 16 : words[v / 2] & 0xffffu);
      }
      reinterpret_cast<uint4*>(args.to + row * args.hidden)[i] =
          make_uint4(gpu::f32x2_to_bf16x2(sums[0], sums[1]), gpu::f32x2_to_bf16x2(sums[2], sums[3]),
                     gpu::f32x2_to_bf16x2(sums[4], sums[5]), gpu::f32x2_to_bf16x2(sums[6], sums[7]));
    }
}

uint32_t row_blocks(int32_t num_rows) {
  return num_rows < 1                                      ? 1
         : static_cast<uint32_t>(num_rows) < kMaxRowBlocks ? static_cast<uint32_t>(num_rows)
                                                           : kMaxRowBlocks;
}

}  // namespace

void launch_mark(uint64_t* to, Stream stream) { gpu::launch(bench_mark, {.variant = "bench.mark"}, stream, to); }

void launch_gate(const DeviceGate& gate, uint64_t* to, Stream stream) {
  gpu::launch(bench_gate, {.variant = "bench.gate", .num_threads = 64}, stream, gate, to);
}

void launch_gather_rows(const GatherRows& args, Stream stream) {
  gpu::launch(bench_gather_rows,
              {.variant = "bench.gather_rows", .num_blocks = row_blocks(args.num_rows), .num_threads = kThreads}, stream,
              args);
}

void launch_add_rows(const AddRows& args, Stream stream) {
  gpu::launch(bench_add_rows,
              {.variant = "bench.add_rows", .num_blocks = row_blocks(args.num_rows), .num_threads = kThreads}, stream, args);
}

}  // namespace mixlane::bench
