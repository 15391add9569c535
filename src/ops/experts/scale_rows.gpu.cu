// Input rows times their pairs' weights, rounded to bf16: a row per pair.
#include "gpu/launch.hpp"
#include "gpu/numeric.cuh"
#include "ops/experts/launchers.hpp"

namespace mixlane::experts_gpu {
namespace {

constexpr uint32_t kThreads = 256;

// A block per pair.
__global__ void __launch_bounds__(kThreads) experts_scale_rows(const ScaleRowsArgs args) {
  gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();
  const uint32_t row = gpu::divide(blockIdx.x, args.by_topk);
  const uint32_t k = blockIdx.x - row * args.by_topk.divisor;
  const float weight = args.weights.data[row * args.weights.stride + k];
  const std::byte* from = args.rows.data + row * args.rows.stride;
  auto* to = reinterpret_cast<uint32_t*>(args.output) + int64_t{blockIdx.x} * (args.hidden / 2);
  for (uint32_t i = threadIdx.x; i < args.hidden / 2; i += kThreads) {
    const uint32_t low = reinterpret_cast<const uint16_t*>(from)[2 * i],
                   high = reinterpret_cast<const uint16_t*>(from)[2 * i + 1];
    to[i] = gpu::f32x2_to_bf16x2(gpu::bf16_to_f32(low) * weight, gpu::bf16_to_f32(high) * weight);
  }
}

}  // namespace

void launch_scale_rows(const ScaleRowsArgs& args, uint32_t num_pairs, bool overlap, Stream stream) {
  if (num_pairs == 0) return;
  gpu::launch(
      experts_scale_rows,
      {.variant = "experts.scale_rows", .num_blocks = num_pairs, .num_threads = kThreads, .overlaps_previous = overlap},
      stream, args);
}

}  // namespace mixlane::experts_gpu
