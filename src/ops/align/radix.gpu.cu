#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/align/launchers.hpp"
#include "ops/align/radix.cuh"

namespace mixlane::align_gpu {
namespace {

using SortTile = DigitTile<512, 8, gpu::kHardwareWave>;
constexpr uint32_t kMaxBlocksPerMultiprocessor = 2;  // of 512 threads with 64 registers
constexpr uint32_t kMinPairsPerBlock = 2048;

// Enough blocks for the pairs and for what is done per code.
uint32_t wanted_blocks(const KernelArgs& args, Device device) {
  const auto num_multiprocessors = static_cast<uint32_t>(gpu::num_multiprocessors(device.index));
  const uint32_t for_codes = args.num_codes / SortTile::kThreads + 1;
  const uint32_t for_columns = kNumDigits / SortTile::kWaves;
  return std::min(std::max({args.source.num_pairs / kMinPairsPerBlock, for_codes, for_columns}),
                  num_multiprocessors * kMaxBlocksPerMultiprocessor);
}

template <bool kPlain>
void launch_sort(const KernelArgs& args, Device device, Stream stream) {
  const auto kernel = align_radix<SortTile, kPlain>;
  const int resident = gpu::max_resident_blocks(reinterpret_cast<const void*>(kernel), SortTile::kThreads, 0);
  const auto most = static_cast<uint32_t>(gpu::num_multiprocessors(device.index) * std::max(resident, 1));
  gpu::launch(kernel,
              {.variant = "align.radix",
               .num_blocks = std::min(wanted_blocks(args, device), most),
               .num_threads = SortTile::kThreads,
               .cooperative = true},
              stream, args);
}

}  // namespace

int64_t radix_workspace_words(const KernelArgs& args, Device device) {
  return RadixSpace::words(args.source.num_pairs, args.num_codes, wanted_blocks(args, device));
}

void launch_radix(const KernelArgs& args, bool plain, Device device, Stream stream) {
  if (plain)
    launch_sort<true>(args, device, stream);
  else
    launch_sort<false>(args, device, stream);
}

}  // namespace mixlane::align_gpu
