#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/align/launchers.hpp"
#include "ops/align/multi_phase.cuh"

namespace mixlane::align_gpu {
namespace {

// A tile's items take their time whether they are there or not.
using SmallTile = Tile<512, 4, gpu::kHardwareWave>;
using MediumTile = Tile<512, 8, gpu::kHardwareWave>;
// The larger a tile, the longer its runs of a code.
using LargestTile = Tile<1024, 12, gpu::kHardwareWave>;
using PairedTile = Tile<512, 12, gpu::kHardwareWave>;
// From so many pairs per multiprocessor on: of many codes, where large tiles don't pay yet.
constexpr uint32_t kPairsForLargestTile = 12288;
// A second block hides the first one's barriers.
constexpr uint32_t kPairsForSecondBlock = 4096;
constexpr uint32_t kMinPairsPerBlock = 1024;
constexpr int kMaxBlocksPerMultiprocessor = 2;

struct Geometry {
  uint32_t num_blocks;
  uint32_t cache_bytes;
};

template <class Tile>
int64_t fixed_bytes(const KernelArgs& args) {
  return Tile::shared_bytes(args.num_codes) + Staged<Tile>::kBytes;
}

template <class Tile, int kBlocks>
Geometry pick_geometry(const void* kernel, const KernelArgs& args, Device device) {
  const auto num_multiprocessors = static_cast<uint32_t>(gpu::num_multiprocessors(device.index));
  const int64_t fixed = fixed_bytes<Tile>(args);
  const int64_t available = gpu::max_shared_bytes(device.index);
  const uint32_t num_pairs = args.source.num_pairs;
  uint32_t per_multiprocessor = num_pairs / num_multiprocessors >= kPairsForSecondBlock ? kBlocks : 1;
  // A kilobyte of each block's share belongs to the runtime.
  int64_t share = (available + 1024) / per_multiprocessor - 1024;
  if (share < fixed) {
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
  const int64_t cache_bytes = std::min(share - fixed, wanted) / 16 * 16;
  const int resident = gpu::max_resident_blocks(kernel, Tile::kThreads, fixed + cache_bytes);
  return {std::min(num_blocks, num_multiprocessors * static_cast<uint32_t>(std::max(resident, 1))),
          static_cast<uint32_t>(cache_bytes)};
}

template <class Tile, bool kPlain, int kBlocks = 1>
void launch_tile(const KernelArgs& args, Device device, Stream stream) {
  const auto kernel = align_multi_phase<Tile, kPlain, kBlocks>;
  const Geometry geometry = pick_geometry<Tile, kBlocks>(reinterpret_cast<const void*>(kernel), args, device);
  gpu::launch(kernel,
              {.variant = "align.multi_phase",
               .num_blocks = geometry.num_blocks,
               .num_threads = Tile::kThreads,
               .shared_bytes = fixed_bytes<Tile>(args) + geometry.cache_bytes,
               .cooperative = true},
              stream, args, geometry.cache_bytes);
}

}  // namespace

int64_t multi_phase_workspace_words(const KernelArgs& args, Device device) {
  if (takes_many(args, device)) return many_workspace_words(args, device);
  const int num_multiprocessors = gpu::num_multiprocessors(device.index);
  return Matrix::words(args.num_codes, static_cast<uint32_t>(num_multiprocessors * kMaxBlocksPerMultiprocessor));
}

void launch_multi_phase(const KernelArgs& args, bool plain, Device device, Stream stream) {
  if (takes_many(args, device)) return launch_many(args, plain, device, stream);
  const auto num_multiprocessors = static_cast<uint32_t>(gpu::num_multiprocessors(device.index));
  const uint32_t per_multiprocessor = args.source.num_pairs / num_multiprocessors;
  if (!plain)
    launch_tile<PairedTile, false, kMaxBlocksPerMultiprocessor>(args, device, stream);
  else if (per_multiprocessor <= SmallTile::kPairs)
    launch_tile<SmallTile, true>(args, device, stream);
  else if (per_multiprocessor < kPairsForLargestTile || fixed_bytes<LargestTile>(args) > gpu::max_shared_bytes(device.index))
    launch_tile<MediumTile, true>(args, device, stream);
  else
    launch_tile<LargestTile, true>(args, device, stream);
}

}  // namespace mixlane::align_gpu
