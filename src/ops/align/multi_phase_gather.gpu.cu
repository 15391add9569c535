#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/align/launchers.hpp"
#include "ops/align/multi_phase_gather.cuh"

namespace mixlane::align_gpu {
namespace {

// Two blocks of a multiprocessor hide each other's passes over codes.
template <int kItems>
using Sorter = TileSorter<512, kItems, gpu::kHardwareWave, 2>;
using LargeSorter = Sorter<32>;
// Where there are too few pairs for large tiles, or too little shared memory (64 KB).
using SmallSorter = Sorter<16>;
constexpr uint32_t kPairsForLargeTiles = 24576;  // of a multiprocessor
// Of fewer the kernel of align.multi_phase that keeps codes on chip is quicker.
constexpr uint32_t kMinPairs = 12288;  // of a multiprocessor

uint32_t num_multiprocessors(Device device) { return static_cast<uint32_t>(gpu::num_multiprocessors(device.index)); }

uint32_t pairs_per_multiprocessor(const KernelArgs& args, Device device) {
  return args.source.num_pairs / num_multiprocessors(device);
}

template <class Sorter>
bool fits(const KernelArgs& args, Device device) {
  return gather_shared_bytes<Sorter>(args.num_codes) <= gpu::max_shared_bytes(device.index);
}

bool takes_large_tiles(const KernelArgs& args, Device device) {
  return fits<LargeSorter>(args, device) && pairs_per_multiprocessor(args, device) >= kPairsForLargeTiles;
}

template <class Sorter>
int64_t words(const KernelArgs& args, Device device) {
  return GatherSpace<Sorter>::words(args.source.num_pairs, args.num_codes, num_multiprocessors(device) * Sorter::kBlocks);
}

template <class Sorter>
void launch_tiles(const KernelArgs& args, bool plain, Device device, Stream stream) {
  const auto kernel = plain ? align_multi_phase_gather<Sorter, true> : align_multi_phase_gather<Sorter, false>;
  const int64_t shared_bytes = gather_shared_bytes<Sorter>(args.num_codes);
  const int resident = gpu::max_resident_blocks(reinterpret_cast<const void*>(kernel), Sorter::kThreads, shared_bytes);
  const uint32_t per_multiprocessor = std::clamp(static_cast<uint32_t>(resident), 1u, Sorter::kBlocks);
  gpu::launch(kernel,
              {.variant = "align.multi_phase",
               .num_blocks = num_multiprocessors(device) * per_multiprocessor,
               .num_threads = Sorter::kThreads,
               .shared_bytes = shared_bytes,
               .cooperative = true},
              stream, args);
}

}  // namespace

bool takes_gather(const KernelArgs& args, Device device) {
  return fits<SmallSorter>(args, device) && pairs_per_multiprocessor(args, device) >= kMinPairs;
}

int64_t gather_workspace_words(const KernelArgs& args, Device device) {
  return takes_large_tiles(args, device) ? words<LargeSorter>(args, device) : words<SmallSorter>(args, device);
}

void launch_gather(const KernelArgs& args, bool plain, Device device, Stream stream) {
  if (takes_large_tiles(args, device))
    launch_tiles<LargeSorter>(args, plain, device, stream);
  else
    launch_tiles<SmallSorter>(args, plain, device, stream);
}

}  // namespace mixlane::align_gpu
