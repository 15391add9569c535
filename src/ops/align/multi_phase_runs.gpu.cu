#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/align/launchers.hpp"
#include "ops/align/multi_phase_runs.cuh"

namespace mixlane::align_gpu {
namespace {

// By what a multiprocessor has in shared memory: 227 KB, 163 KB, 64 KB. A wave of 64 is two groups.
constexpr bool kWideWaves = gpu::kHardwareWave == 64;
using LargeRuns = RunTile<kWideWaves ? 2 : 8, 32>;
using SmallRuns = RunTile<kWideWaves ? 2 : 4, 32>;
// Of fewer pairs per multiprocessor the smaller tiles' kernel is quicker: a run is a lane's, however few lanes have one.
constexpr uint32_t kMinPairsPerMultiprocessor = 12288;

uint32_t num_multiprocessors(Device device) { return static_cast<uint32_t>(gpu::num_multiprocessors(device.index)); }

template <class Runs>
bool fits(const KernelArgs& args, Device device) {
  return runs_shared_bytes<Runs>(args.num_codes) <= gpu::max_shared_bytes(device.index);
}

template <class Runs>
void launch_tiles(const KernelArgs& args, bool plain, Device device, Stream stream) {
  gpu::launch(align_multi_phase_runs<Runs>,
              {.variant = "align.multi_phase",
               .num_blocks = num_multiprocessors(device),
               .num_threads = Runs::kThreads,
               .shared_bytes = runs_shared_bytes<Runs>(args.num_codes),
               .cooperative = true},
              stream, args, plain);
}

}  // namespace

bool takes_runs(const KernelArgs& args, Device device) {
  return args.num_codes <= SmallRuns::kCodes && fits<SmallRuns>(args, device) &&
         args.source.num_pairs / num_multiprocessors(device) >= kMinPairsPerMultiprocessor;
}

int64_t runs_workspace_words(const KernelArgs& args, Device device) {
  return RunSpace<SmallRuns>::words(args.source.num_pairs, args.num_codes, num_multiprocessors(device));
}

void launch_runs(const KernelArgs& args, bool plain, Device device, Stream stream) {
  if (fits<LargeRuns>(args, device))
    launch_tiles<LargeRuns>(args, plain, device, stream);
  else
    launch_tiles<SmallRuns>(args, plain, device, stream);
}

}  // namespace mixlane::align_gpu
