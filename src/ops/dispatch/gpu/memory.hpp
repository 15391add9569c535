// What a rank keeps on its GPU beside the windows.
#pragma once

#include "gpu/runtime.hpp"
#include "ops/dispatch/backend.hpp"
#include "ops/dispatch/gpu/device_args.hpp"

namespace mixlane::exchange_gpu {

class GpuRankMemory {
 public:
  GpuRankMemory(Device device, const DispatcherConfig& config, int num_ranks, int rank)
      : state_(device, sizeof(CallState)),
        masked_(device, sizeof(uint32_t)),
        status_(device, sizeof(Status)),
        routing_(device, 4 * (int64_t{config.max_tokens} * num_ranks + 2 * num_ranks + 2)),
        owners_(device, config.num_experts),
        expert_map_(device, int64_t{4} * config.num_experts),
        end_(sizeof(Status)) {
    *end_.as<Status>() = Status{};
    const gpu::OwnedStream stream(device);
    const Status ok;
    std::vector<uint8_t> owners(config.expert_rank.begin(), config.expert_rank.end());
    const std::vector<int32_t> map = local_expert_map(config, rank);
    gpu::copy(status_.data(), &ok, sizeof(ok), stream.get());
    gpu::copy(owners_.data(), owners.data(), config.num_experts, stream.get());
    gpu::copy(expert_map_.data(), map.data(), int64_t{4} * config.num_experts, stream.get());
    gpu::synchronize(stream.get());
    int32_t* const words = routing_.as<int32_t>();
    const int64_t slots = int64_t{config.max_tokens} * num_ranks;
    device_routing_ = {words, words + slots, words + slots + num_ranks, words + slots + 2 * num_ranks,
                       reinterpret_cast<uint32_t*>(words + slots + 2 * num_ranks + 1)};
  }

  CallState* state() const { return state_.as<CallState>(); }
  uint32_t* masked() const { return masked_.as<uint32_t>(); }
  Status* status() const { return status_.as<Status>(); }
  Status* end() const { return end_.as<Status>(); }
  const uint8_t* owners() const { return owners_.as<uint8_t>(); }
  int32_t* expert_map() const { return expert_map_.as<int32_t>(); }
  const DeviceRouting& routing() const { return device_routing_; }

 private:
  gpu::Buffer state_;
  gpu::Buffer masked_;
  gpu::Buffer status_;
  gpu::Buffer routing_;
  gpu::Buffer owners_;
  gpu::Buffer expert_map_;
  gpu::PinnedBuffer end_;
  DeviceRouting device_routing_;
};

}  // namespace mixlane::exchange_gpu
