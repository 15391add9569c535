#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/dispatch/combine.cuh"
#include "ops/dispatch/geometry.hpp"
#include "ops/dispatch/launchers.hpp"

namespace mixlane::exchange_gpu {
namespace {

using Kernel = void (*)(CombineKernelArgs);

template <CombineWire kWire, PartialSource kSource>
Kernel kernel_of(Regime regime) {
  if constexpr (kWire != CombineWire::f64)  // whose sums take too many registers for such large blocks
    if (regime == Regime::throughput) return combine_throughput<kWire, kSource>;
  return combine_latency<kWire, kSource>;
}

template <CombineWire kWire>
Kernel kernel_from(Regime regime, PartialSource source) {
  switch (source) {
    case PartialSource::pairs: return kernel_of<kWire, PartialSource::pairs>(regime);
    case PartialSource::reduced_bf16: return kernel_of<kWire, PartialSource::reduced_bf16>(regime);
    case PartialSource::reduced_f32: return kernel_of<kWire, PartialSource::reduced_f32>(regime);
  }
  return nullptr;
}

Kernel kernel_for(Regime regime, CombineWire wire, PartialSource source) {
  switch (wire) {
    case CombineWire::bf16: return kernel_from<CombineWire::bf16>(regime, source);
    case CombineWire::f32: return kernel_from<CombineWire::f32>(regime, source);
    case CombineWire::f64: return kernel_from<CombineWire::f64>(regime, source);
  }
  return nullptr;
}

// Rows come from peers that may have more tokens than this rank.
constexpr uint32_t kMinSendBlocks = 32;

}  // namespace

void load_combine_kernels(CombineWire wire) {
  for (const Regime regime : {Regime::latency, Regime::throughput})
    for (const PartialSource source : {PartialSource::pairs, PartialSource::reduced_bf16, PartialSource::reduced_f32})
      gpu::max_resident_blocks(reinterpret_cast<const void*>(kernel_for(regime, wire, source)), kLatencyThreads, 0);
}

void launch_combine(CombineKernelArgs args, Regime regime, CombineWire wire, const Budget& budget, Stream stream) {
  const Kernel kernel = kernel_for(regime, wire, args.source);
  // A wave more: the one that flags rows.
  const uint32_t num_threads = threads_for(args.num_octets, wire == CombineWire::f64 ? Regime::latency : regime, kWave);
  // Blocks that add up wait for peers, whose blocks may wait for this rank's sending ones: all must run at once.
  const int resident = gpu::max_resident_blocks(reinterpret_cast<const void*>(kernel), static_cast<int>(num_threads), 0);
  const uint32_t most = std::max(std::min(budget.combine_blocks(resident), kMaxBlocks) / 2, 1u);
  const uint32_t wanted = args.num_tokens < most ? args.num_tokens * kRowParts : most;
  args.num_send_blocks = std::clamp(wanted, std::min(kMinSendBlocks, most), most);
  const uint32_t num_adding = std::clamp(wanted, 1u, most);
  gpu::launch(kernel,
              {.variant = regime == Regime::latency ? "combine.latency" : "combine.throughput",
               .num_blocks = args.num_send_blocks + num_adding,
               .num_threads = num_threads,
               .overlaps_previous = budget.overlaps},
              stream, args);
}

}  // namespace mixlane::exchange_gpu
