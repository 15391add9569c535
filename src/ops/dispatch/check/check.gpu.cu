#include "gpu/launch.hpp"
#include "ops/dispatch/check/check.cuh"

namespace mixlane::exchange_gpu {
namespace {

using CombineKernel = void (*)(CombineKernelArgs, CheckArgs);

template <CombineWire kWire>
CombineKernel repeat_kernel(PartialSource source) {
  switch (source) {
    case PartialSource::pairs: return repeat_partials<kWire, PartialSource::pairs>;
    case PartialSource::reduced_bf16: return repeat_partials<kWire, PartialSource::reduced_bf16>;
    case PartialSource::reduced_f32: return repeat_partials<kWire, PartialSource::reduced_f32>;
  }
  return nullptr;
}

CombineKernel repeat_kernel(CombineWire wire, PartialSource source) {
  switch (wire) {
    case CombineWire::bf16: return repeat_kernel<CombineWire::bf16>(source);
    case CombineWire::fp8_1x128: return repeat_kernel<CombineWire::fp8_1x128>(source);
    case CombineWire::f32: return repeat_kernel<CombineWire::f32>(source);
    case CombineWire::f64: return repeat_kernel<CombineWire::f64>(source);
  }
  return nullptr;
}

CombineKernel compare_kernel(CombineWire wire) {
  switch (wire) {
    case CombineWire::bf16: return compare_outputs<CombineWire::bf16>;
    case CombineWire::fp8_1x128: return compare_outputs<CombineWire::fp8_1x128>;
    case CombineWire::f32: return compare_outputs<CombineWire::f32>;
    case CombineWire::f64: return compare_outputs<CombineWire::f64>;
  }
  return nullptr;
}

// One block per multiprocessor of the rank's share: blocks that wait for peers leave room for the other ranks' kernels.
gpu::LaunchShape shape_for(const Budget& budget) {
  return {.variant = "protocol check",
          .num_blocks = static_cast<uint32_t>(budget.num_multiprocessors),
          .num_threads = kCheckThreads};
}

}  // namespace

void load_check_kernels(CombineWire wire) {
  const auto load = [](auto* kernel) {
    gpu::max_resident_blocks(reinterpret_cast<const void*>(kernel), static_cast<int>(kCheckThreads), 0);
  };
  load(poison_windows);
  load(sum_received);
  load(stamp_sent);
  load(compare_received);
  for (const PartialSource source : {PartialSource::pairs, PartialSource::reduced_bf16, PartialSource::reduced_f32})
    load(repeat_kernel(wire, source));
  load(compare_kernel(wire));
}

void launch_poison(const Exchange& exchange, uint32_t payload_bytes, bool keep_records, const Budget& budget,
                   Stream stream) {
  gpu::launch(poison_windows, shape_for(budget), stream, exchange, payload_bytes, keep_records);
}

void launch_check_dispatch(const DispatchKernelArgs& sent, const CheckArgs& check, const Budget& budget, Stream stream) {
  gpu::launch(sum_received, shape_for(budget), stream, sent.exchange, check);
  gpu::launch(stamp_sent, shape_for(budget), stream, sent, check);
  gpu::launch(compare_received, shape_for(budget), stream, sent.exchange, check);
}

void launch_check_combine(const CombineKernelArgs& args, CombineWire wire, const CheckArgs& check, const Budget& budget,
                          Stream stream) {
  CombineKernelArgs again = args;
  again.exchange.status = check.ignored;
  gpu::launch(repeat_kernel(wire, args.source), shape_for(budget), stream, again, check);
  gpu::launch(compare_kernel(wire), shape_for(budget), stream, args, check);
}

}  // namespace mixlane::exchange_gpu
