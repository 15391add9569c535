#include "ops/dispatch/gpu/call_arguments.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "core/math.hpp"
#include "ops/dispatch/gpu/mover.hpp"

namespace mixlane {

using namespace exchange_gpu;

namespace {

constexpr int64_t kPacket = 16;

// Kernels read and write rows in packets.
template <class View>
Matrix rows_of(std::string_view what, const View& view) {
  const int64_t stride = size_bytes(view.dtype, view.strides[0]);
  if (reinterpret_cast<uintptr_t>(view.data) % kPacket != 0 || (view.shape[0] > 1 && stride % kPacket != 0))
    fail(ErrorCode::unsupported, "{} is {} at an address {} bytes off; on GPUs rows must start at multiples of 16 bytes",
         what, to_string(view), reinterpret_cast<uintptr_t>(view.data) % kPacket);
  return {static_cast<const std::byte*>(static_cast<const void*>(view.data)), stride};
}

}  // namespace

CallArguments::CallArguments(const Communicator& comm, const DispatcherConfig& config, const GpuWindowLayout& layout,
                             const SymmetricMemory& windows, const GpuRankMemory& own, const Fault& fault)
    : comm_(comm),
      config_(config),
      layout_(layout),
      windows_(windows),
      own_(own),
      fault_(fault),
      owners_(make_owners()),
      counts_for_inbox_(layout.inbox_rows > 0 && config.num_multiprocessors == 0 && !config.copy_engine) {}

// Arithmetic where it gives the owners, else a table.
ExpertOwners CallArguments::make_owners() const {
  const auto num_experts = static_cast<uint32_t>(config_.num_experts);
  const auto num_ranks = static_cast<uint32_t>(comm_.num_ranks());
  const uint32_t each = num_experts / num_ranks, larger = num_experts % num_ranks;
  ExpertOwners owners;
  owners.num_experts = num_experts;
  owners.num_larger = larger;
  owners.larger_end = larger * (each + 1);
  owners.by_larger = gpu::Divider::by(each + 1);
  owners.by_smaller = gpu::Divider::by(std::max(each, 1u));
  for (uint32_t e = 0; e < num_experts; ++e) {
    const uint32_t owner = e < owners.larger_end ? e / (each + 1) : larger + (e - owners.larger_end) / std::max(each, 1u);
    if (static_cast<uint32_t>(config_.expert_rank[e]) != owner) {
      owners.table = own_.owners();
      break;
    }
  }
  return owners;
}

Exchange CallArguments::exchange(ExchangeStage stage, Status* status) const {
  Exchange exchange;
  Window& window = exchange.window;
  for (int r = 0; r < comm_.num_ranks(); ++r) window.parts[r] = windows_.part(r);
  window.rank = comm_.rank();
  window.num_ranks = comm_.num_ranks();
  window.capacity = config_.capacity;
  window.done_at = layout_.done_at;
  window.row_flags_at = layout_.row_flags_at;
  window.records_at = layout_.records_at;
  window.record_stride = layout_.records.record_stride;
  window.partials_at = layout_.partials_at;
  window.partial_stride = layout_.records.partial_stride;
  window.lines_at = layout_.lines_at;
  window.line_stride = layout_.line_stride;
  window.line_rows = layout_.line_rows;
  window.line_pairs = layout_.line_pairs;
  window.record_packets = layout_.record_packets;
  window.inbox_at = layout_.inbox_at;
  window.inbox_rows = layout_.inbox_rows;
  exchange.state = own_.state();
  exchange.masked = own_.masked();
  exchange.status = status ? status : own_.status();
  exchange.end = own_.end();
  exchange.deadline_ns = static_cast<uint64_t>(std::chrono::nanoseconds(comm_.deadline()).count());
  exchange.fail_on_timeout = config_.on_peer_timeout == OnPeerTimeout::fail;
  exchange.jitter_ns = static_cast<uint32_t>(1000 * fault_.jitter_us);
  if (fault_.hits(stage, comm_.rank(), fault_.epoch) && fault_.stall_ms >= 0) {
    exchange.stall_epoch = static_cast<uint32_t>(fault_.epoch);
    exchange.stall_ns = static_cast<uint64_t>(fault_.stall_ms) * 1'000'000;
  }
  exchange.routing = own_.routing();
  return exchange;
}

DispatchKernelArgs CallArguments::of(const DispatchArgs& args) const {
  DispatchKernelArgs to;
  to.exchange = exchange(ExchangeStage::dispatch, args.status);
  to.hidden = rows_of("hidden", args.hidden);
  if (args.scales.given()) {
    to.scales = args.scales.data;
    to.scale_row_stride = args.scales.strides[0];
    to.scale_col_stride = args.scales.ndim > 1 ? args.scales.strides[1] : 0;
  }
  to.ids = args.topk_ids.as<int32_t>();
  to.weights = args.topk_weights.as<float>();
  to.num_tokens = args.num_tokens.as<int32_t>();
  to.num_rows = static_cast<uint32_t>(args.hidden.shape[0]);
  to.num_topk = static_cast<uint32_t>(config_.num_topk);
  to.wants_inbox = args.hidden.shape[0] <= to.exchange.window.inbox_rows;
  to.whole_rows = config_.early_rows;
  to.inbox_by_count = !to.wants_inbox && args.num_tokens.given() && counts_for_inbox_;
  to.wants_inbox |= to.inbox_by_count;
  to.plain_ids = config_.num_topk == 8 && reinterpret_cast<uintptr_t>(to.ids) % kPacket == 0 && owners_.table == nullptr &&
                 owners_.num_larger == 0;
  const bool quantizes = payload_of(config_, args) != Payload::copy;
  // Quantised rows in whole groups of 128 bf16 values.
  to.num_packets =
      static_cast<uint32_t>(quantizes ? ceil_div(config_.hidden, 128) * 16 : layout_.records.payload_bytes / kPacket);
  to.num_values = static_cast<uint32_t>(config_.hidden);
  to.payload_bytes = static_cast<uint32_t>(layout_.records.payload_bytes);
  to.num_scale_words = static_cast<uint32_t>(layout_.records.scale_words);
  if (layout_.records.scale_dtype == DType::e8m0) to.num_byte_scales = static_cast<uint32_t>(layout_.records.num_scales);
  to.owners = owners_;
  return to;
}

CombineKernelArgs CallArguments::of(const CombineArgs& args, bool counts_on_device) const {
  CombineKernelArgs to;
  to.exchange = exchange(ExchangeStage::combine, args.status);
  const bool reduced = args.reduced_rows.given();
  const ConstTensorView& rows = reduced ? args.reduced_rows : args.expert_rows;
  to.rows = rows_of(reduced ? "reduced_rows" : "expert_rows", rows);
  to.num_rows = static_cast<uint32_t>(rows.shape[0]);
  to.source = !reduced                    ? PartialSource::pairs
              : rows.dtype == DType::bf16 ? PartialSource::reduced_bf16
                                          : PartialSource::reduced_f32;
  to.pair_slots = args.pair_slots.as<int32_t>();
  to.num_topk = static_cast<uint32_t>(config_.num_topk);
  to.apply_weights = args.apply_weights;
  to.weights_at = layout_.records.weights_at;
  if (args.addend.given()) {
    to.addend = rows_of("addend", args.addend);
    to.addend_dtype = args.addend.dtype;
  }
  const Matrix output = rows_of("output", args.output);
  to.output = static_cast<std::byte*>(args.output.data);
  to.output_stride = output.stride;
  to.output_dtype = args.output.dtype;
  to.num_tokens = static_cast<uint32_t>(args.output.shape[0]);
  to.num_octets = static_cast<uint32_t>(config_.hidden / 8);
  to.counts_on_device = counts_on_device;
  to.uses_inbox = args.output.shape[0] <= to.exchange.window.inbox_rows;
  to.inbox_by_count = !to.uses_inbox && counts_on_device && counts_for_inbox_;
  return to;
}

}  // namespace mixlane
