#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/align/launchers.hpp"
#include "ops/align/multi_phase.cuh"

namespace mixlane::align_gpu {
namespace {

using SmallTile = Tile<512, 4, gpu::kHardwareWave>;
using LargeTile = Tile<512, 12, gpu::kHardwareWave>;
// Of 512 threads: what 64 registers each allow.
constexpr int kMaxBlocksPerMultiprocessor = 2;
constexpr uint32_t kMinPairsPerBlock = 1024;
// From so many pairs per multiprocessor on, a second block hides the first one's barriers.
constexpr uint32_t kPairsForSecondBlock = 4096;

struct Geometry {
  uint32_t num_blocks;
  uint32_t cache_bytes;
};

template <class Tile>
Geometry pick_geometry(const void* kernel, const KernelArgs& args, Device device) {
  const auto num_multiprocessors = static_cast<uint32_t>(gpu::num_multiprocessors(device.index));
  const int64_t fixed_bytes = Tile::shared_bytes(args.num_codes) + Staged<Tile>::kBytes;
  const int64_t available = gpu::max_shared_bytes(device.index);
  const uint32_t num_pairs = args.source.num_pairs;
  uint32_t per_multiprocessor = num_pairs / num_multiprocessors >= kPairsForSecondBlock ? kMaxBlocksPerMultiprocessor : 1;
  // A kilobyte of each block's share belongs to the runtime.
  int64_t share = (available + 1024) / per_multiprocessor - 1024;
  if (share < fixed_bytes) {
    per_multiprocessor = 1;
    share = available;
  }
  // Few pairs still want a wave per column.
  const uint32_t for_columns = (args.num_codes + Tile::kWaves - 1) / Tile::kWaves;
  const uint32_t num_blocks =
      std::min(std::max(num_pairs / kMinPairsPerBlock, for_columns), num_multiprocessors * per_multiprocessor);
  // Up to one tile too many: the last one is kept whole.
  const int64_t bytes_per_pair = args.num_codes > 256 ? 2 : 1;
  const int64_t wanted = (num_pairs / num_blocks + Tile::kPairs) * bytes_per_pair;
  const int64_t cache_bytes = std::min(share - fixed_bytes, wanted) / 16 * 16;
  const int resident = gpu::max_resident_blocks(kernel, Tile::kThreads, fixed_bytes + cache_bytes);
  return {std::min(num_blocks, num_multiprocessors * static_cast<uint32_t>(std::max(resident, 1))),
          static_cast<uint32_t>(cache_bytes)};
}

template <class Tile, bool kPlain>
void launch_tile(const KernelArgs& args, Device device, Stream stream) {
  const auto kernel = align_multi_phase<Tile, kPlain>;
  const Geometry geometry = pick_geometry<Tile>(reinterpret_cast<const void*>(kernel), args, device);
  gpu::launch(kernel,
              {.variant = "align.multi_phase",
               .num_blocks = geometry.num_blocks,
               .num_threads = Tile::kThreads,
               .shared_bytes = Tile::shared_bytes(args.num_codes) + Staged<Tile>::kBytes + geometry.cache_bytes,
               .cooperative = true},
              stream, args, geometry.cache_bytes);
}

}  // namespace

int64_t multi_phase_workspace_words(const KernelArgs& args, Device device) {
  if (takes_runs(args, device)) return runs_workspace_words(args, device);
  const int num_multiprocessors = gpu::num_multiprocessors(device.index);
  return Matrix::words(args.num_codes, static_cast<uint32_t>(num_multiprocessors * kMaxBlocksPerMultiprocessor));
}

void launch_multi_phase(const KernelArgs& args, bool plain, Device device, Stream stream) {
  if (takes_runs(args, device)) return launch_runs(args, plain, device, stream);
  const auto num_multiprocessors = static_cast<uint32_t>(gpu::num_multiprocessors(device.index));
  const bool small = args.source.num_pairs / num_multiprocessors <= SmallTile::kPairs;
  if (!plain)
    launch_tile<LargeTile, false>(args, device, stream);
  else if (small)
    launch_tile<SmallTile, true>(args, device, stream);
  else
    launch_tile<LargeTile, true>(args, device, stream);
}

}  // namespace mixlane::align_gpu
