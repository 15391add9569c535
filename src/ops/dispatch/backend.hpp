// What a device must do for the dispatcher. The front (op.cpp) has checked the arguments' shapes by then.
#pragma once

#include "core/registry.hpp"
#include "ops/dispatch/layout.hpp"
#include "ops/dispatch/route.hpp"
#include "ops/dispatch/stage.hpp"

namespace mixlane {

class ExchangeBackend {
 public:
  virtual ~ExchangeBackend() = default;

  // Throws if an earlier failure ended this rank's part in the group.
  virtual void require_usable() const = 0;
  // Tells the peers that this rank does not make its next call, and why.
  virtual void refuse(ExchangeStage stage, const Error& error) = 0;

  // Everything that may still refuse the call, before anything is sent. The state belongs to the backend and stays
  // as it is while a handle refers to it.
  virtual std::shared_ptr<RoutingState> prepare_dispatch(const DispatchArgs& args, const RoutingState* replay,
                                                         Status& status) = 0;
  virtual void prepare_combine(const CombineArgs& args, const RoutingState& routing) = 0;

  // The exchange itself, in halves; a backend or variant that has none does all of it in the first. dispatch_send fills in
  // state.counts.received and everything of the result but the handle.
  virtual ReceivedRows dispatch_send(const DispatchArgs& args, RoutingState& state, Status& status, Stream stream) = 0;
  virtual void dispatch_receive(Stream) {}
  virtual void combine_send(const CombineArgs& args, const RoutingState& state, Status& status, Stream stream) = 0;
  virtual void combine_receive(Stream) {}

  virtual std::vector<int> masked_ranks() const = 0;
  // i32 [num_experts] on the backend's device.
  virtual ConstTensorView expert_map() const = 0;
};

// This rank's index of each physical expert, -1 for the others'.
std::vector<int32_t> local_expert_map(const DispatcherConfig& config, int rank);

// dispatch.shm and combine.shm. Collective.
std::unique_ptr<ExchangeBackend> make_shm_backend(Context& context, std::shared_ptr<Communicator> comm,
                                                  const DispatcherConfig& config);
// dispatch.latency and combine.latency. Collective.
std::unique_ptr<ExchangeBackend> make_gpu_backend(Context& context, std::shared_ptr<Communicator> comm,
                                                  const DispatcherConfig& config);
// Of this build; none without a GPU backend.
std::span<const VariantInfo> dispatch_gpu_variants();
std::span<const VariantInfo> combine_gpu_variants();

}  // namespace mixlane
