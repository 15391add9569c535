#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/align/launchers.hpp"
#include "ops/align/multi_phase_runs.cuh"

namespace mixlane::align_gpu {
namespace {

using LargeRuns = RunTile<8, 4, 32>;
constexpr uint32_t kBlocksPerMultiprocessor = 1;
// Fewer pairs per multiprocessor leave lanes without a run.
constexpr uint32_t kMinPairsPerMultiprocessor = 16384;

uint32_t most_blocks(Device device) {
  return static_cast<uint32_t>(gpu::num_multiprocessors(device.index)) * kBlocksPerMultiprocessor;
}

}  // namespace

bool takes_runs(const KernelArgs& args, Device device) {
  const auto num_multiprocessors = static_cast<uint32_t>(gpu::num_multiprocessors(device.index));
  return args.num_codes <= LargeRuns::kCodes && args.source.num_pairs / num_multiprocessors >= kMinPairsPerMultiprocessor &&
         runs_shared_bytes<LargeRuns>(args.num_codes) <= gpu::max_shared_bytes(device.index);
}

int64_t runs_workspace_words(const KernelArgs& args, Device device) {
  return RunSpace<LargeRuns>::words(args.source.num_pairs, args.num_codes, most_blocks(device));
}

void launch_runs(const KernelArgs& args, bool plain, Device device, Stream stream) {
  const auto kernel = align_multi_phase_runs<LargeRuns>;
  const int64_t shared_bytes = runs_shared_bytes<LargeRuns>(args.num_codes);
  const int resident = gpu::max_resident_blocks(reinterpret_cast<const void*>(kernel), LargeRuns::kThreads, shared_bytes);
  const auto num_multiprocessors = static_cast<uint32_t>(gpu::num_multiprocessors(device.index));
  gpu::launch(
      kernel,
      {.variant = "align.multi_phase",
       .num_blocks = std::min(most_blocks(device), num_multiprocessors * static_cast<uint32_t>(std::max(resident, 1))),
       .num_threads = LargeRuns::kThreads,
       .shared_bytes = shared_bytes,
       .cooperative = true},
      stream, args, plain);
}

}  // namespace mixlane::align_gpu
