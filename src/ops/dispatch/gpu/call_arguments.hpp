// From a call's arguments to what its kernels get.
#pragma once

#include "ops/dispatch/fault.hpp"
#include "ops/dispatch/gpu/layout.hpp"
#include "ops/dispatch/gpu/memory.hpp"

namespace mixlane {

// Everything that it is made from belongs to the backend and outlives it.
class CallArguments {
 public:
  CallArguments(const Communicator& comm, const DispatcherConfig& config, const GpuWindowLayout& layout,
                const SymmetricMemory& windows, const exchange_gpu::GpuRankMemory& own, const Fault& fault);

  // Throw unsupported for rows at addresses that kernels can't read in packets.
  exchange_gpu::DispatchKernelArgs of(const DispatchArgs& args) const;
  // `counts_on_device`: of the tokens that were dispatched.
  exchange_gpu::CombineKernelArgs of(const CombineArgs& args, bool counts_on_device) const;

 private:
  exchange_gpu::ExpertOwners make_owners() const;
  exchange_gpu::Exchange exchange(ExchangeStage stage, Status* status) const;

  const Communicator& comm_;
  const DispatcherConfig& config_;
  const GpuWindowLayout& layout_;
  const SymmetricMemory& windows_;
  const exchange_gpu::GpuRankMemory& own_;
  const Fault& fault_;
  exchange_gpu::ExpertOwners owners_;
  // Whether calls whose number of tokens is on the device use the inbox by that number: combine.latency does their combine
  // then, which neither a limit nor copy engines should be passed over for.
  bool counts_for_inbox_;
};

}  // namespace mixlane
