#include "ops/dispatch/gpu/mover.hpp"

#include "core/error.hpp"
#include "ops/dispatch/backend.hpp"
#include "ops/dispatch/choose.hpp"

namespace mixlane {

using namespace exchange_gpu;

Payload payload_of(const DispatcherConfig& config, const DispatchArgs& args) {
  if (config.wire == WireFormat::bf16 || args.hidden.dtype != DType::bf16) return Payload::copy;
  switch (scale_group(config.wire)) {
    case ScaleGroup::row: return Payload::quantize_row;
    case ScaleGroup::group_1x32: return Payload::quantize_1x32;
    default: return Payload::quantize_1x128;
  }
}

// From so many tokens on a few multiprocessors do as well as all of them.
constexpr int64_t kManyTokens = 1024;

// False where the driver refuses copies between GPUs, or ranks share one: another variant does it then.
bool MoverChoice::can_use_copy_engines(std::string_view variant) const {
  if (!copies)
    fail(ErrorCode::unsupported, "{} needs memory of its own; set DispatcherConfig::copy_engine on all ranks", variant);
  return copies->problem().empty();
}

// For "auto": what is tuned for such calls, empty if nothing is, or if it is copies between GPUs that the driver refuses.
std::string_view MoverChoice::tuned_variant(ExchangeStage stage, int64_t row_bytes, int64_t num_tokens) const {
  const ExchangeKey key{num_ranks, row_bytes, config.num_multiprocessors, copies != nullptr, num_tokens};
  const std::string_view tuned = tuned_exchange(context, stage, key);
  return tuned.ends_with(".copy_engine") && !(copies && copies->problem().empty()) ? std::string_view{} : tuned;
}

Mover MoverChoice::of(const DispatchArgs& args, const DispatchKernelArgs& made) const {
  const int64_t num_tokens = args.hidden.shape[0];
  const bool as_they_are = payload_of(config, args) == Payload::copy;
  const bool can = budget.has_bulk_copies && as_they_are && takes_bulk(made);
  if (args.variant == "auto") {
    const std::string_view tuned = tuned_variant(ExchangeStage::dispatch, layout.payload_bytes, num_tokens);
    if (tuned == "dispatch.copy_engine" && as_they_are) return Mover::copy_engines;
    const bool pays = tuned.empty() ? budget.limited && num_tokens >= kManyTokens : tuned == "dispatch.throughput";
    return can && pays ? Mover::bulk_copies : Mover::stores;
  }
  if (args.variant == "dispatch.latency") return Mover::stores;
  if (args.variant == "dispatch.copy_engine") {
    if (!as_they_are)
      fail(ErrorCode::unsupported,
           "dispatch.copy_engine takes rows that go as they are: bf16, or quantised before; use dispatch.latency");
    if (can_use_copy_engines(args.variant)) return Mover::copy_engines;
    return can ? Mover::bulk_copies : Mover::stores;
  }
  if (!can)
    fail(ErrorCode::unsupported,
         "dispatch.throughput takes rows that go as they are, of at most 64 KiB, on sm_90; use dispatch.latency");
  return Mover::bulk_copies;
}

// A rank with few tokens gets its partial sums from its inbox, which only combine.latency does. This goes by their number
// alone, so that calls from graphs and from the host may take turns; if only the device knows it, combine.latency looks.
Mover MoverChoice::of(const CombineArgs& args, const CombineKernelArgs& made) const {
  const bool by_stores = made.uses_inbox || made.inbox_by_count;
  if (by_stores && args.variant == "auto") return Mover::stores;
  const int64_t num_tokens = args.output.shape[0];
  const bool can = budget.has_bulk_copies && takes_bulk(made, config.combine_wire);
  Mover wanted = Mover::stores;
  if (args.variant == "auto") {
    const std::string_view tuned = tuned_variant(ExchangeStage::combine, layout.partial_bytes, num_tokens);
    const bool pays = tuned.empty() ? budget.limited && num_tokens >= kManyTokens : tuned == "combine.throughput";
    if (tuned == "combine.copy_engine")
      wanted = Mover::copy_engines;
    else if (can && pays)
      wanted = Mover::bulk_copies;
  } else if (args.variant == "combine.copy_engine") {
    if (can_use_copy_engines(args.variant)) wanted = Mover::copy_engines;
  } else if (args.variant == "combine.throughput") {
    if (!can)
      fail(ErrorCode::unsupported,
           "combine.throughput takes reduced rows of the wire's type, of at most 64 KiB, on sm_90; use combine.latency");
    wanted = Mover::bulk_copies;
  }
  return by_stores ? Mover::stores : wanted;
}

std::span<const VariantInfo> dispatch_gpu_variants() {
  static constexpr VariantInfo kVariants[] = {
    {"dispatch.latency", "one launch: blocks find their tokens' slots, store rows to the peers and leave; one block waits",
     gpu::kDeviceType},
#if !defined(MIXLANE_HIP)
    {"dispatch.throughput", "the same by bulk copies of one thread per block: many tokens through few multiprocessors",
     gpu::kDeviceType},
#endif
    {"dispatch.copy_engine", "kernels put rows together, copy engines move them: no multiprocessor is busy meanwhile",
     gpu::kDeviceType},
  };
  return kVariants;
}

std::span<const VariantInfo> combine_gpu_variants() {
  static constexpr VariantInfo kVariants[] = {
    {"combine.latency", "one launch: half of the blocks send partial sums, a flag per row; the others add them up",
     gpu::kDeviceType},
#if !defined(MIXLANE_HIP)
    {"combine.throughput", "one launch: a thread of each block sends reduced rows by bulk copies, the other waves add up",
     gpu::kDeviceType},
#endif
    {"combine.copy_engine", "kernels make partial sums and add them up, copy engines bring them to their owners",
     gpu::kDeviceType},
  };
  return kVariants;
}

}  // namespace mixlane
