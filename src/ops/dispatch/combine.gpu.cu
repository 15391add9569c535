#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/dispatch/combine.cuh"
#include "ops/dispatch/geometry.hpp"
#include "ops/dispatch/launchers.hpp"

namespace mixlane::exchange_gpu {
namespace {

using Kernel = void (*)(CombineKernelArgs);

template <CombineWire kWire, PartialSource kSource>
Kernel kernel_for(bool few) {
  // Only bf16 goes in lines.
  if constexpr (kWire == CombineWire::bf16)
    if (few) return combine_latency<kWire, kSource, true>;
  return combine_latency<kWire, kSource, false>;
}

template <CombineWire kWire>
Kernel kernel_for(PartialSource source, bool few) {
  switch (source) {
    case PartialSource::pairs: return kernel_for<kWire, PartialSource::pairs>(few);
    case PartialSource::reduced_bf16: return kernel_for<kWire, PartialSource::reduced_bf16>(few);
    case PartialSource::reduced_f32: return kernel_for<kWire, PartialSource::reduced_f32>(few);
  }
  return nullptr;
}

Kernel kernel_for(CombineWire wire, PartialSource source, bool few) {
  switch (wire) {
    case CombineWire::bf16: return kernel_for<CombineWire::bf16>(source, few);
    case CombineWire::fp8_1x128: return kernel_for<CombineWire::fp8_1x128>(source, few);
    case CombineWire::f32: return kernel_for<CombineWire::f32>(source, few);
    case CombineWire::f64: return kernel_for<CombineWire::f64>(source, few);
  }
  return nullptr;
}

// Of a multiprocessor: one that sends and one that adds up.
constexpr int kMaxBlocksPerMultiprocessor = 2;
// Rows come from peers that may have more tokens than this rank.
constexpr uint32_t kMinSendBlocks = 32;

}  // namespace

void load_combine_kernels(CombineWire wire) {
  for (const PartialSource source : {PartialSource::pairs, PartialSource::reduced_bf16, PartialSource::reduced_f32})
    for (const bool few : {true, false})
      gpu::max_resident_blocks(reinterpret_cast<const void*>(kernel_for(wire, source, few)), kMaxThreads, 0);
}

void launch_combine(CombineKernelArgs args, CombineWire wire, const Budget& budget, Stream stream) {
  const auto few_rows = static_cast<uint32_t>(args.exchange.window.few_rows);
  const bool few = args.num_tokens <= few_rows;
  const Kernel kernel = kernel_for(wire, args.source, few);
  // A wave more: the one that flags rows.
  const uint32_t lines_of_part = (4 * args.num_octets / kLineWords + kRowParts - 1) / kRowParts;
  const uint32_t num_threads =
      few ? std::min(small_block(lines_of_part), kMaxThreads - kWave) + kWave : threads_for(args.num_octets, kWave);
  // Blocks that add up wait for peers, whose blocks may wait for this rank's sending ones: all must run at once. Blocks go
  // to the emptiest multiprocessors, so a limit leaves room for one each.
  const int resident = gpu::max_resident_blocks(reinterpret_cast<const void*>(kernel), static_cast<int>(num_threads), 0);
  const int each = budget.limited ? 1 : std::clamp(resident, 1, kMaxBlocksPerMultiprocessor);
  const auto room = static_cast<uint32_t>(budget.num_multiprocessors * each);
  const uint32_t most = std::max(room / 2, 1u);
  const uint32_t wanted = args.num_tokens < most ? args.num_tokens * kRowParts : most;
  args.num_send_blocks = std::clamp(wanted, std::min(kMinSendBlocks, most), most);
  const uint32_t num_adding = std::clamp(wanted, 1u, most);
  gpu::launch(kernel,
              {.variant = "combine.latency",
               .num_blocks = args.num_send_blocks + num_adding,
               .num_threads = num_threads,
               .overlaps_previous = budget.overlaps},
              stream, args);
}

}  // namespace mixlane::exchange_gpu
