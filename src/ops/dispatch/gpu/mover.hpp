// The GPU variants, and which of them serves a call.
#pragma once

#include "ops/dispatch/copy_engine/copy_engine.hpp"
#include "ops/dispatch/gpu/launchers.hpp"
#include "ops/dispatch/layout.hpp"

namespace mixlane {

// Who moves the rows of a call: the variants latency, throughput and copy_engine.
enum class Mover : uint8_t { stores, bulk_copies, copy_engines };

// What a dispatch makes of the rows that it is given.
exchange_gpu::Payload payload_of(const DispatcherConfig& config, const DispatchArgs& args);

// By the variant that is asked for; "auto" by the tuned table, and without one by the number of tokens. Throws unsupported
// for a variant that does not take the arguments.
struct MoverChoice {
  Context& context;
  const DispatcherConfig& config;
  int num_ranks;
  const WindowLayout& layout;
  const exchange_gpu::Budget& budget;
  const CopyEngine* copies;  // nullptr if the configuration does not ask for it

  Mover of(const DispatchArgs& args, const exchange_gpu::DispatchKernelArgs& made) const;
  Mover of(const CombineArgs& args, const exchange_gpu::CombineKernelArgs& made) const;

 private:
  bool can_use_copy_engines(std::string_view variant) const;
  std::string_view tuned_variant(ExchangeStage stage, int64_t row_bytes, int64_t num_tokens) const;
};

}  // namespace mixlane
