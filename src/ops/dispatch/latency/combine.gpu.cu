#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/dispatch/gpu/geometry.hpp"
#include "ops/dispatch/gpu/launchers.hpp"
#include "ops/dispatch/latency/combine.cuh"

namespace mixlane::exchange_gpu {
namespace {

using Kernel = void (*)(CombineKernelArgs);

enum class Way { flags, inbox, by_count };

template <CombineWire kWire, PartialSource kSource>
Kernel kernel_for(Way way) {
  // Only bf16 goes into inboxes.
  if constexpr (kWire == CombineWire::bf16) {
    if (way == Way::inbox) return combine_latency<kWire, kSource, true>;
    if (way == Way::by_count) return combine_latency_by_count<kSource>;
  }
  return combine_latency<kWire, kSource, false>;
}

template <CombineWire kWire>
Kernel kernel_for(PartialSource source, Way way) {
  switch (source) {
    case PartialSource::pairs: return kernel_for<kWire, PartialSource::pairs>(way);
    case PartialSource::reduced_bf16: return kernel_for<kWire, PartialSource::reduced_bf16>(way);
    case PartialSource::reduced_f32: return kernel_for<kWire, PartialSource::reduced_f32>(way);
  }
  return nullptr;
}

Kernel kernel_for(CombineWire wire, PartialSource source, Way way) {
  switch (wire) {
    case CombineWire::bf16: return kernel_for<CombineWire::bf16>(source, way);
    case CombineWire::fp8_1x128: return kernel_for<CombineWire::fp8_1x128>(source, way);
    case CombineWire::f32: return kernel_for<CombineWire::f32>(source, way);
    case CombineWire::f64: return kernel_for<CombineWire::f64>(source, way);
  }
  return nullptr;
}

// Of a multiprocessor: one that sends and one that adds up.
constexpr int kMaxBlocksPerMultiprocessor = 2;
// Rows come from peers that may have more tokens than this rank.
constexpr uint32_t kMinSendBlocks = 32;

uint32_t num_threads_for(const CombineKernelArgs& args, uint32_t num_blocks) {
  const bool pairs = args.source == PartialSource::pairs;
  if (!args.uses_inbox) return threads_for(args.num_octets, kWave);  // a wave lists pairs and flags rows
  const uint32_t aside = pairs ? kWave : 0;
  const uint32_t log2_parts = Share::parts_for(args.num_tokens, num_blocks);
  if (log2_parts == 0) return threads_for(args.num_octets, aside, pairs ? kMaxThreads : kMaxSharingThreads);
  // What all threads do before the first store is most of a small call: no more of them than a part of a row takes.
  const uint32_t held = pairs ? 1 : 2;
  return std::min(small_block((args.num_octets >> log2_parts) / held), kMaxSharingThreads) + aside;
}

// Whether a multiprocessor either sends or adds up. Stores that wait for the link keep the loads of a block beside them
// waiting, which matters where there is a row or more for a block; and few multiprocessors fill the link. (Sums of pairs
// need many.)
constexpr uint32_t kSending = 2, kOfMultiprocessors = 13;
bool splits(const CombineKernelArgs& args, const Budget& budget, uint32_t most) {
  return args.uses_inbox && args.source != PartialSource::pairs && !budget.limited && 2 * args.num_tokens > most &&
         budget.num_multiprocessors >= static_cast<int>(kOfMultiprocessors);
}

}  // namespace

void load_combine_kernels(CombineWire wire) {
  for (const PartialSource source : {PartialSource::pairs, PartialSource::reduced_bf16, PartialSource::reduced_f32})
    for (const Way way : {Way::flags, Way::inbox, Way::by_count})
      gpu::max_resident_blocks(reinterpret_cast<const void*>(kernel_for(wire, source, way)), kMaxSharingThreads, 0);
}

void launch_combine(CombineKernelArgs args, CombineWire wire, const Budget& budget, Stream stream) {
  const Way way = args.inbox_by_count ? Way::by_count : args.uses_inbox ? Way::inbox : Way::flags;
  const Kernel kernel = kernel_for(wire, args.source, way);
  // Blocks that add up wait for peers, whose blocks may wait for this rank's sending ones: all must run at once. Blocks go
  // to the emptiest multiprocessors, so a limit leaves room for one each.
  const bool lean = args.uses_inbox && args.source != PartialSource::pairs;
  const int resident =
      gpu::max_resident_blocks(reinterpret_cast<const void*>(kernel), lean ? kMaxSharingThreads : kMaxThreads, 0);
  const int each = budget.limited ? 1 : std::clamp(resident, 1, kMaxBlocksPerMultiprocessor);
  const auto room = static_cast<uint32_t>(budget.num_multiprocessors * each);
  const uint32_t most = std::max(room / 2, 1u);
  const uint32_t wanted = args.num_tokens < most ? args.num_tokens * kRowParts : most;
  args.num_send_blocks = std::clamp(wanted, std::min(kMinSendBlocks, most), most);
  uint32_t num_adding = std::clamp(wanted, 1u, most);
  if (splits(args, budget, most)) {
    const auto all = static_cast<uint32_t>(budget.num_multiprocessors);
    args.num_send_blocks = all * kSending / kOfMultiprocessors;
    num_adding = all - args.num_send_blocks;
  }
  gpu::launch(kernel,
              {.variant = "combine.latency",
               .num_blocks = args.num_send_blocks + num_adding,
               .num_threads = num_threads_for(args, num_adding),
               .overlaps_previous = budget.overlaps},
              stream, args);
}

}  // namespace mixlane::exchange_gpu
