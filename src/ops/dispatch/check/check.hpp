// MIXLANE_CHECK=protocol on GPUs: the host's half.
#pragma once

#include "gpu/runtime.hpp"
#include "ops/dispatch/check/args.hpp"
#include "ops/dispatch/fault.hpp"
#include "ops/dispatch/gpu/layout.hpp"

namespace mixlane::exchange_gpu {

// Enqueues, around each call of the exchange, the kernels of check.cuh. Works in captured graphs, with any variant.
class ProtocolCheck {
 public:
  // More bytes of each rank's window.
  static int64_t window_bytes(const GpuWindowLayout& layout, const DispatcherConfig& config, int num_ranks);

  // Loads the kernels.
  ProtocolCheck(Device device, const GpuWindowLayout& layout, const DispatcherConfig& config, int num_ranks, int rank,
                const Fault& fault);

  void before_dispatch(const DispatchKernelArgs& args, const Budget& budget, Stream stream) const;
  void after_dispatch(const DispatchArgs& args, const DispatchKernelArgs& given, Payload payload, const Budget& budget,
                      Stream stream) const;
  void before_combine(const CombineKernelArgs& args, const Budget& budget, Stream stream) const;
  void after_combine(const CombineKernelArgs& args, bool partials_in_window, const Budget& budget, Stream stream) const;

 private:
  void load_quant_kernel() const;
  DispatchKernelArgs quantized(const DispatchArgs& args, const DispatchKernelArgs& given, const Budget& budget,
                               Stream stream) const;

  Device device_;
  DispatcherConfig config_;
  uint32_t payload_bytes_;
  int64_t num_scales_;
  int64_t window_end_;
  CheckArgs args_;
  gpu::Buffer sums_;
  gpu::Buffer outputs_;
  gpu::Buffer ignored_;
  gpu::Buffer codes_;  // rows quantised again
  gpu::Buffer scales_;
};

}  // namespace mixlane::exchange_gpu
