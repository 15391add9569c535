#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/align/launchers.hpp"
#include "ops/align/none.cuh"

namespace mixlane::align_gpu {

int max_none_pairs() { return kMaxNonePairs; }

void launch_none(const KernelArgs& args, bool plain, Stream stream) {
  const auto kernel = plain ? align_none<gpu::kHardwareWave, true> : align_none<gpu::kHardwareWave, false>;
  // A wave per pair writes the pads; zero-filling wants all of the device.
  const uint32_t for_pads = (args.source.num_pairs * gpu::kHardwareWave + kMaxNonePairs - 1) / kMaxNonePairs;
  const uint64_t for_zeros = std::min<uint64_t>(static_cast<uint64_t>(args.out.zero_bytes) / (16 * 1024), 512);
  gpu::launch(kernel,
              {.variant = "align.none",
               .num_blocks = std::max({for_pads, static_cast<uint32_t>(for_zeros), 1u}),
               .num_threads = kMaxNonePairs,
               .overlaps_previous = true},
              stream, args);
}

}  // namespace mixlane::align_gpu
