#include "gpu/device.hpp"
#include "gpu/launch.hpp"
#include "gpu_kernels.hpp"

namespace mixlane::bench {
namespace {

constexpr uint32_t kThreads = 512;
constexpr int kPackets = 4;  // that a thread loads at once
constexpr uint32_t kBlockPackets = kThreads * kPackets;
static_assert(kBlockPackets * sizeof(uint4) == kStreamBytes);

__global__ void doctor_nothing() {}

__device__ uint32_t mixed(uint32_t bits) {
  bits = (bits ^ bits >> 16) * 0x7feb352du;
  bits = (bits ^ bits >> 15) * 0x846ca68bu;
  return bits ^ bits >> 16;
}

__global__ void __launch_bounds__(kThreads) doctor_fill(uint4* to) {
  for (int i = 0; i < kPackets; ++i) {
    const uint32_t at = blockIdx.x * kBlockPackets + i * kThreads + threadIdx.x;
    const uint32_t seed = mixed(at);
    to[at] = make_uint4(seed, mixed(seed + 1), mixed(seed + 2), mixed(seed + 3));
  }
}

// Of all shapes small blocks with a packet per thread copy fastest: the hardware keeps the loads in flight.
constexpr uint32_t kCopyThreads = 256;
static_assert(kStreamBytes % (kCopyThreads * sizeof(uint4)) == 0);

__global__ void __launch_bounds__(kCopyThreads) doctor_copy(uint4* to, const uint4* from) {
  const uint32_t at = blockIdx.x * kCopyThreads + threadIdx.x;
  to[at] = from[at];
}

__global__ void __launch_bounds__(kThreads) doctor_read(const uint4* from, uint32_t* sink) {
  const uint32_t at = blockIdx.x * kBlockPackets + threadIdx.x;
  uint32_t all = 0;
#pragma unroll
  for (int i = 0; i < kPackets; ++i) {
    const uint4 packet = from[at + i * kThreads];
    all |= packet.x ^ packet.y ^ packet.z ^ packet.w;
  }
  // No data has this shape; the compiler can't know.
  if (all == 0 && __syncthreads_count(1) < 0) *sink = 1;
}

// False past the limit. The clock is slow to read: it is looked at where the word does not come soon.
__device__ bool wait_for(const uint32_t* word, uint32_t round, uint64_t limit_ns) {
  for (uint64_t begin = 0;;) {
#pragma unroll 1
    for (int poll = 0; poll < 1000; ++poll)
      if (gpu::load_relaxed<gpu::Scope::system>(word) >= round) return true;
    const uint64_t now = gpu::clock_ns();
    if (begin == 0) begin = now;
    if (now - begin > limit_ns) return false;
  }
}

// The word alone travels, so that nothing has to be ordered with it.
__global__ void doctor_ping_pong(const PingPong args) {
  // The first exchange starts the clock: the other GPU may begin later.
  uint64_t begin = 0;
  for (uint32_t round = 0; round <= args.num_rounds; ++round) {
    if (args.begins) gpu::store_relaxed<gpu::Scope::system>(args.others, round + 1);
    if (!wait_for(args.own, round + 1, args.limit_ns)) return;
    if (!args.begins) gpu::store_relaxed<gpu::Scope::system>(args.others, round + 1);
    if (round == 0) begin = gpu::clock_ns();
  }
  *args.elapsed_ns = gpu::clock_ns() - begin;
}

uint32_t num_blocks(int64_t bytes) { return static_cast<uint32_t>(bytes / kStreamBytes); }

}  // namespace

void launch_nothing(Stream stream) { gpu::launch(doctor_nothing, {.variant = "doctor, nothing"}, stream); }

void launch_fill(void* to, int64_t bytes, Stream stream) {
  gpu::launch(doctor_fill, {.variant = "doctor, fill", .num_blocks = num_blocks(bytes), .num_threads = kThreads}, stream,
              static_cast<uint4*>(to));
}

void launch_copy(void* to, const void* from, int64_t bytes, Stream stream) {
  const auto num_copy_blocks = static_cast<uint32_t>(bytes / (kCopyThreads * int64_t{sizeof(uint4)}));
  gpu::launch(doctor_copy, {.variant = "doctor, copy", .num_blocks = num_copy_blocks, .num_threads = kCopyThreads}, stream,
              static_cast<uint4*>(to), static_cast<const uint4*>(from));
}

void launch_read(const void* from, int64_t bytes, uint32_t* sink, Stream stream) {
  gpu::launch(doctor_read, {.variant = "doctor, read", .num_blocks = num_blocks(bytes), .num_threads = kThreads}, stream,
              static_cast<const uint4*>(from), sink);
}

void launch_ping_pong(const PingPong& args, Stream stream) {
  gpu::launch(doctor_ping_pong, {.variant = "doctor, ping-pong"}, stream, args);
}

}  // namespace mixlane::bench
