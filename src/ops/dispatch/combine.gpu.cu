#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/dispatch/combine.cuh"
#include "ops/dispatch/geometry.hpp"
#include "ops/dispatch/launchers.hpp"

namespace mixlane::exchange_gpu {
namespace {

using Kernel = void (*)(CombineKernelArgs);

template <CombineWire kWire>
Kernel kernel_from(PartialSource source) {
  switch (source) {
    case PartialSource::pairs: return combine_latency<kWire, PartialSource::pairs>;
    case PartialSource::reduced_bf16: return combine_latency<kWire, PartialSource::reduced_bf16>;
    case PartialSource::reduced_f32: return combine_latency<kWire, PartialSource::reduced_f32>;
  }
  return nullptr;
}

Kernel kernel_for(CombineWire wire, PartialSource source) {
  switch (wire) {
    case CombineWire::bf16: return kernel_from<CombineWire::bf16>(source);
    case CombineWire::f32: return kernel_from<CombineWire::f32>(source);
    case CombineWire::f64: return kernel_from<CombineWire::f64>(source);
  }
  return nullptr;
}

// Rows come from peers that may have more tokens than this rank.
constexpr uint32_t kMinSendBlocks = 32;

}  // namespace

void load_combine_kernels(CombineWire wire) {
  for (const PartialSource source : {PartialSource::pairs, PartialSource::reduced_bf16, PartialSource::reduced_f32})
    gpu::max_resident_blocks(reinterpret_cast<const void*>(kernel_for(wire, source)), kMaxThreads, 0);
}

void launch_combine_latency(CombineKernelArgs args, CombineWire wire, const Budget& budget, Stream stream) {
  const Kernel kernel = kernel_for(wire, args.source);
  const uint32_t num_threads = threads_for(args.num_octets);
  // Blocks that add up wait for peers, whose blocks may wait for this rank's sending ones: all must run at once.
  const int resident = gpu::max_resident_blocks(reinterpret_cast<const void*>(kernel), static_cast<int>(num_threads), 0);
  const auto room = static_cast<uint32_t>(budget.num_multiprocessors * std::max(resident, 1));
  const uint32_t most =
      std::max(std::min(room, static_cast<uint32_t>(2 * budget.num_multiprocessors * kBlocksPerMultiprocessor)) / 2, 1u);
  const uint32_t wanted = args.num_tokens < most ? args.num_tokens * kRowParts : most;
  args.num_send_blocks = std::clamp(wanted, std::min(kMinSendBlocks, most), most);
  const uint32_t num_adding = std::clamp(wanted, 1u, most);
  gpu::launch(kernel,
              {.variant = "combine.latency", .num_blocks = args.num_send_blocks + num_adding, .num_threads = num_threads},
              stream, args);
}

}  // namespace mixlane::exchange_gpu
