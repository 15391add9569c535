#include "gpu/launch.hpp"
#include "ops/dispatch/gpu/geometry.hpp"
#include "ops/dispatch/gpu/launchers.hpp"
#include "ops/dispatch/latency/dispatch.cuh"

namespace mixlane::exchange_gpu {
namespace {

using Kernel = void (*)(DispatchKernelArgs);

enum class Way { in_lines, one_row, by_count, any };

template <Payload kPayload>
Kernel kernel_for(Way way) {
  switch (way) {
    case Way::in_lines: return dispatch_latency_lines<kPayload>;
    case Way::one_row: return dispatch_latency<kPayload, RowsOfBlock::one>;
    case Way::by_count: return dispatch_latency<kPayload, RowsOfBlock::by_count>;
    case Way::any: return dispatch_latency<kPayload, RowsOfBlock::any>;
  }
  return nullptr;
}
Kernel kernel_for(Payload payload, Way way) {
  switch (payload) {
    case Payload::copy: return kernel_for<Payload::copy>(way);
    case Payload::quantize_1x128: return kernel_for<Payload::quantize_1x128>(way);
    case Payload::quantize_1x32: return kernel_for<Payload::quantize_1x32>(way);
    case Payload::quantize_row: return kernel_for<Payload::quantize_row>(way);
  }
  return nullptr;
}

// Rows whose scales a block puts together between barriers; memory for twice as many.
uint32_t scale_rows_for(uint32_t num_words) {
  constexpr uint32_t kMostRows = 8, kMostBytes = 16 * 1024;
  uint32_t rows = kMostRows;
  while (rows > 1 && 8 * rows * num_words > kMostBytes) rows /= 2;
  return rows;
}

// A thread for each kHeldOfRow packets; of whole rows not fewer than find the slots of a few hundred tokens at once.
uint32_t row_threads(uint32_t num_packets, bool part_of_row) {
  constexpr uint32_t kFewest = (224 + kWave - 1) / kWave * kWave;
  const uint32_t wanted = ((num_packets + kHeldOfRow - 1) / kHeldOfRow + kWave - 1) / kWave * kWave;
  return std::clamp(wanted, part_of_row ? 128u : kFewest, kMaxRowThreads);
}

// Scales that are bytes go as words where they lie so.
void take_words(DispatchKernelArgs& args, Payload payload) {
  const bool aligned =
      (reinterpret_cast<uintptr_t>(args.scales) | static_cast<uintptr_t>(args.scale_row_stride) | args.num_byte_scales) %
          4 ==
      0;
  if (payload == Payload::copy && !(aligned && args.scale_col_stride == 1)) return;
  if (args.num_byte_scales != 0) args.scale_row_stride /= 4;
  args.num_byte_scales = 0;
}

// Shared memory of a block that puts a row together, without the scales of it.
constexpr int64_t kMaxStagedBytes = 36 * 1024;
int64_t staged_bytes(const DispatchKernelArgs& args) {
  return int64_t{args.exchange.window.line_pairs} * kPacketsOfPair * 16;
}
// Whether this call's rows go in lines. Other blocks than the last one have to copy those of the peers to their places,
// which a limit leaves no room for.
bool goes_in_lines(const DispatchKernelArgs& args, const Budget& budget) {
  return gpu::kDeviceType == DeviceType::cuda && !budget.limited && staged_bytes(args) <= kMaxStagedBytes &&
         args.exchange.window.line_rows > 0 && args.num_rows <= static_cast<uint32_t>(kLineRows);
}

void launch_in_lines(DispatchKernelArgs args, Payload payload, const Budget& budget, uint32_t most, Stream stream) {
  const bool whole_rows = payload != Payload::copy || args.num_scale_words != 0;
  const uint32_t wanted = std::clamp(whole_rows ? args.num_rows : args.num_rows * kRowParts, 1u, most);
  const auto num_peers = static_cast<uint32_t>(args.exchange.window.num_ranks) - 1;
  // Blocks that wait for peers: where these may be on the same GPU, only one.
  if (budget.overlaps && num_peers > 0)
    args.num_receivers = std::clamp(args.num_rows * kRowParts, 1u, std::max(most / num_peers, 1u)) * num_peers;
  args.scale_rows = 1;
  // What all threads do before the first store is most of a small call: no more of them than a part of a row takes.
  const uint32_t log2_parts = whole_rows ? 0 : Share::parts_for(args.num_rows, wanted);
  const uint32_t packets = args.exchange.window.record_packets >> log2_parts;
  const uint32_t num_threads = log2_parts > 0 ? std::min(small_block(packets / kHeldOfLines), kMaxSharingThreads)
                                              : threads_for(args.exchange.window.line_pairs * 16, 0, kMaxSharingThreads);
  gpu::launch(kernel_for(payload, Way::in_lines),
              {.variant = "dispatch.latency",
               .num_blocks = wanted + args.num_receivers + 1,
               .num_threads = num_threads,
               .shared_bytes = staged_bytes(args) + (makes_scale_rows(payload) ? int64_t{8} * args.num_scale_words : 0),
               .overlaps_previous = budget.overlaps},
              stream, args);
}

}  // namespace

void load_dispatch_kernels() {
  for (const Payload payload : {Payload::copy, Payload::quantize_1x128, Payload::quantize_row, Payload::quantize_1x32})
    for (const Way way : {Way::in_lines, Way::one_row, Way::by_count, Way::any})
      gpu::max_resident_blocks(reinterpret_cast<const void*>(kernel_for(payload, way)), kMaxRowThreads, 0);
}

void launch_dispatch(DispatchKernelArgs args, Payload payload, const Budget& budget, Stream stream) {
  take_words(args, payload);
  // One block per multiprocessor: they fill the link, and after a dispatch without a combine, when all of them wait for the
  // peers' credits, they run at once.
  const uint32_t most = std::clamp(static_cast<uint32_t>(budget.num_multiprocessors) - 1, 1u, kMaxSendBlocks);
  if (goes_in_lines(args, budget)) {
    launch_in_lines(args, payload, budget, most, stream);
    return;
  }
  const uint32_t wanted = std::clamp(args.num_rows < most ? args.num_rows * kRowParts : most, 1u, most);
  const uint32_t packets = args.num_packets >> (args.whole_rows ? 0 : Share::parts_for(args.num_rows, wanted));
  const uint32_t num_threads = row_threads(packets, packets < args.num_packets);
  const bool one_row = args.num_rows <= std::min(most, num_threads);
  args.scale_rows = one_row ? 1 : scale_rows_for(args.num_scale_words);
  const Way way = one_row ? Way::one_row : args.num_tokens != nullptr ? Way::by_count : Way::any;
  gpu::launch(kernel_for(payload, way),
              {.variant = "dispatch.latency",
               .num_blocks = wanted + 1,
               .num_threads = num_threads,
               .shared_bytes = makes_scale_rows(payload) ? int64_t{8} * args.scale_rows * args.num_scale_words : 0,
               .overlaps_previous = budget.overlaps},
              stream, args);
}

}  // namespace mixlane::exchange_gpu
