#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/align/launchers.hpp"
#include "ops/align/multi_phase.cuh"

namespace mixlane::align_gpu {
namespace {

using PhaseTile = Tile<512, 16, gpu::kHardwareWave>;
constexpr int kMaxBlocksPerMultiprocessor = 2;
constexpr uint32_t kMinPairsPerBlock = 1024;
// From so many pairs per multiprocessor on, a second block hides the first one's barriers.
constexpr uint32_t kPairsForSecondBlock = 4096;

struct Geometry {
  uint32_t num_blocks;
  uint32_t cache_bytes;
};

Geometry pick_geometry(const void* kernel, const KernelArgs& args, Device device) {
  const auto num_multiprocessors = static_cast<uint32_t>(gpu::num_multiprocessors(device.index));
  const int64_t fixed_bytes = PhaseTile::shared_bytes(args.num_codes);
  const int64_t available = gpu::max_shared_bytes(device.index);
  const uint32_t num_pairs = args.source.num_pairs;
  uint32_t per_multiprocessor = num_pairs / num_multiprocessors >= kPairsForSecondBlock ? kMaxBlocksPerMultiprocessor : 1;
  // A kilobyte of each block's share belongs to the runtime.
  int64_t share = (available + 1024) / per_multiprocessor - 1024;
  if (share < fixed_bytes) {
    per_multiprocessor = 1;
    share = available;
  }
  const uint32_t num_blocks = std::clamp(num_pairs / kMinPairsPerBlock, 1u, num_multiprocessors * per_multiprocessor);
  // Two or four bytes too many per thread and tile are what rounding costs.
  const int64_t bytes_per_pair = args.num_codes > 256 ? 2 : 1;
  const int64_t wanted = (num_pairs / num_blocks + PhaseTile::kPairs) * bytes_per_pair;
  const int64_t cache_bytes = std::min(share - fixed_bytes, wanted) / 16 * 16;
  const int resident = gpu::max_resident_blocks(kernel, PhaseTile::kThreads, fixed_bytes + cache_bytes);
  return {std::min(num_blocks, num_multiprocessors * static_cast<uint32_t>(std::max(resident, 1))),
          static_cast<uint32_t>(cache_bytes)};
}

}  // namespace

int64_t multi_phase_workspace_words(uint32_t num_codes, int num_multiprocessors) {
  return Matrix::words(num_codes, static_cast<uint32_t>(num_multiprocessors * kMaxBlocksPerMultiprocessor));
}

void launch_multi_phase(const KernelArgs& args, bool plain, Device device, Stream stream) {
  const auto kernel = plain ? align_multi_phase<PhaseTile, true> : align_multi_phase<PhaseTile, false>;
  const Geometry geometry = pick_geometry(reinterpret_cast<const void*>(kernel), args, device);
  gpu::launch(kernel,
              {.variant = "align.multi_phase",
               .num_blocks = geometry.num_blocks,
               .num_threads = PhaseTile::kThreads,
               .shared_bytes = PhaseTile::shared_bytes(args.num_codes) + geometry.cache_bytes,
               .cooperative = true},
              stream, args, geometry.cache_bytes);
}

}  // namespace mixlane::align_gpu
