#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/dispatch/copy_engine/copy_engine.cuh"
#include "ops/dispatch/copy_engine/launchers.hpp"

namespace mixlane::exchange_gpu {
namespace {

// Of a multiprocessor; each has a row at a time.
constexpr int kRowBlocks = 8, kAddBlocks = 4, kAddBlocksBesideCopies = 2;
// Beside copies; at least a block.
constexpr int64_t kBytesBesideCopies = 32 * 1024;

uint32_t row_blocks(int64_t num_rows, int each, const Budget& budget) {
  return static_cast<uint32_t>(std::clamp<int64_t>(num_rows, 1, int64_t{budget.num_multiprocessors} * each));
}

int blocks_at(Pace pace, int64_t row_bytes) {
  if (pace == Pace::alone) return kRowBlocks;
  return static_cast<int>(std::clamp<int64_t>(kBytesBesideCopies / row_bytes, 1, kRowBlocks));
}

using Make = void (*)(CombineKernelArgs, CopyStage, uint32_t, uint32_t, uint32_t);
using Add = void (*)(CombineKernelArgs, uint32_t, uint32_t, bool);

struct CombineKernels {
  Make make;
  Add add;
};

template <CombineWire kWire>
CombineKernels kernels_from(PartialSource source) {
  switch (source) {
    case PartialSource::pairs:
      return {combine_copy_engine_make<kWire, PartialSource::pairs>, combine_copy_engine_add<kWire, PartialSource::pairs>};
    case PartialSource::reduced_bf16:
      return {combine_copy_engine_make<kWire, PartialSource::reduced_bf16>,
              combine_copy_engine_add<kWire, PartialSource::reduced_bf16>};
    case PartialSource::reduced_f32:
      return {combine_copy_engine_make<kWire, PartialSource::reduced_f32>,
              combine_copy_engine_add<kWire, PartialSource::reduced_f32>};
  }
  return {};
}

CombineKernels kernels_for(CombineWire wire, PartialSource source) {
  switch (wire) {
    case CombineWire::bf16: return kernels_from<CombineWire::bf16>(source);
    case CombineWire::fp8_1x128: return kernels_from<CombineWire::fp8_1x128>(source);
    case CombineWire::f32: return kernels_from<CombineWire::f32>(source);
    case CombineWire::f64: return kernels_from<CombineWire::f64>(source);
  }
  return {};
}

template <class Kernel>
void load(Kernel* kernel) {
  gpu::max_resident_blocks(reinterpret_cast<const void*>(kernel), kRowThreads, 0);
}

}  // namespace

void load_copy_kernels(CombineWire wire) {
  load(dispatch_copy_engine_first);
  load(dispatch_copy_engine_route);
  load(dispatch_copy_engine_pack);
  load(dispatch_copy_engine_report);
  load(dispatch_copy_engine_receive);
  load(combine_copy_engine_flag);
  for (const PartialSource source : {PartialSource::pairs, PartialSource::reduced_bf16, PartialSource::reduced_f32}) {
    load(kernels_for(wire, source).make);
    load(kernels_for(wire, source).add);
  }
}

void launch_copy_first(const DispatchKernelArgs& args, const CopyStage& stage, int64_t num_slots, const Budget& budget,
                       Stream stream) {
  gpu::launch(dispatch_copy_engine_first,
              {.variant = "dispatch.copy_engine",
               .num_blocks = row_blocks(num_slots * (args.exchange.window.num_ranks - 1), kRowBlocks / 2, budget),
               .num_threads = kRouteThreads},
              stream, args, stage, static_cast<uint32_t>(num_slots));
}

void launch_copy_route(const DispatchKernelArgs& args, const CopyStage& stage, Stream stream) {
  gpu::launch(dispatch_copy_engine_route,
              {.variant = "dispatch.copy_engine",
               .num_blocks = std::max((args.num_rows + kRouteThreads - 1) / kRouteThreads, 1u),
               .num_threads = kRouteThreads},
              stream, args, stage);
}

void launch_copy_pack(const DispatchKernelArgs& args, const CopyStage& stage, Packed which, RowRange slots, Pace pace,
                      const Budget& budget, Stream stream) {
  const auto num_ranks = static_cast<uint32_t>(args.exchange.window.num_ranks);
  const auto rank = static_cast<uint32_t>(args.exchange.window.rank);
  const uint32_t num_targets = which == Packed::own ? 1 : num_ranks - 1;
  if (num_targets == 0) return;
  gpu::launch(dispatch_copy_engine_pack,
              {.variant = "dispatch.copy_engine",
               .num_blocks = row_blocks((slots.end - slots.begin) * num_targets,
                                        blocks_at(pace, args.exchange.window.record_stride), budget),
               .num_threads = kRowThreads},
              stream, args, stage, static_cast<uint32_t>(slots.begin), static_cast<uint32_t>(slots.end),
              which == Packed::own ? rank : rank + 1, num_targets);
}

void launch_copy_report(const DispatchKernelArgs& args, Stream stream) {
  gpu::launch(dispatch_copy_engine_report, {.variant = "dispatch.copy_engine", .num_threads = kRowThreads}, stream, args);
}

void launch_copy_receive(const DispatchKernelArgs& args, const CopyStage& stage, Stream stream) {
  gpu::launch(dispatch_copy_engine_receive, {.variant = "dispatch.copy_engine", .num_threads = kRowThreads}, stream, args,
              stage);
}

void launch_copy_make(const CombineKernelArgs& args, CombineWire wire, const CopyStage& stage, RowRange slots,
                      int64_t num_copied, Pace pace, const Budget& budget, Stream stream) {
  const int64_t num_peers = args.exchange.window.num_ranks - 1;
  gpu::launch(kernels_for(wire, args.source).make,
              {.variant = "combine.copy_engine",
               .num_blocks = row_blocks((slots.end - slots.begin) * num_peers,
                                        blocks_at(pace, args.exchange.window.partial_stride), budget),
               .num_threads = kRowThreads},
              stream, args, stage, static_cast<uint32_t>(slots.begin), static_cast<uint32_t>(slots.end),
              static_cast<uint32_t>(num_copied));
}

void launch_copy_add(const CombineKernelArgs& args, CombineWire wire, RowRange tokens, Pace pace, bool closes,
                     const Budget& budget, Stream stream) {
  const int each = pace == Pace::alone ? kAddBlocks : kAddBlocksBesideCopies;
  gpu::launch(kernels_for(wire, args.source).add,
              {.variant = "combine.copy_engine",
               .num_blocks = row_blocks(tokens.end - tokens.begin, each, budget),
               .num_threads = kRowThreads},
              stream, args, static_cast<uint32_t>(tokens.begin), static_cast<uint32_t>(tokens.end), closes);
}

void launch_copy_flag(const Exchange& exchange, RowRange slots, Stream stream) {
  gpu::launch(combine_copy_engine_flag,
              {.variant = "combine.copy_engine",
               .num_blocks = static_cast<uint32_t>((slots.end - slots.begin + kRowThreads - 1) / kRowThreads),
               .num_threads = kRowThreads},
              stream, exchange, static_cast<uint32_t>(slots.begin), static_cast<uint32_t>(slots.end));
}

}  // namespace mixlane::exchange_gpu
