// dispatch.latency and combine.latency: ranks on the GPUs of one host that write into each other's windows.
#include "ops/dispatch/backend.hpp"

#include <algorithm>
#include <cstring>
#include <optional>

#include "core/env.hpp"
#include "core/math.hpp"
#include "core/notices.hpp"
#include "gpu/peer.hpp"
#include "ops/dispatch/check/check.hpp"
#include "ops/dispatch/copy_engine/copy_engine.hpp"
#include "ops/dispatch/fault.hpp"
#include "ops/dispatch/gpu/launchers.hpp"
#include "ops/dispatch/gpu/layout.hpp"
#include "ops/dispatch/gpu/memory.hpp"
#include "ops/dispatch/gpu/mover.hpp"

namespace mixlane {
namespace {

using namespace exchange_gpu;

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

struct GpuRouting final : RoutingState {
  // Counts stay on the device; whoever asks for them waits for it.
  Stream stream;
  const DeviceRouting* on_device = nullptr;
  bool counts_on_device = false;  // of tokens
  void fetch_counts() override {
    const auto bytes = static_cast<int64_t>(counts.sent.size() * sizeof(int32_t));
    gpu::copy(counts.sent.data(), on_device->sent_count, bytes, stream);
    gpu::copy(counts.received.data(), on_device->recv_count, bytes, stream);
    gpu::synchronize(stream);
  }
};

class GpuBackend final : public ExchangeBackend {
 public:
  GpuBackend(Context& context, std::shared_ptr<Communicator> comm, const DispatcherConfig& config)
      : context_(context),
        device_(context.device()),
        comm_(std::move(comm)),
        config_(config),
        layout_(config, comm_->num_ranks()),
        fault_(parse_fault(context.env().fault)),
        windows_(
            comm_->allocate(bytes_per_rank(context.env().check_protocol), "window memory of dispatch and combine", device_)),
        own_(device_, config, comm_->num_ranks(), comm_->rank()) {
    {
      const gpu::DeviceGuard guard(device_);
      if (context.env().check_protocol) check_.emplace(device_, layout_, config, comm_->num_ranks(), comm_->rank(), fault_);
      load_dispatch_kernels();
      load_combine_kernels(config.combine_wire);
      budget_.has_bulk_copies = device_.type == DeviceType::cuda && gpu::compute_capability(device_.index) >= 90;
      if (budget_.has_bulk_copies) {
        load_bulk_kernel();
        load_combine_bulk_kernel(config.combine_wire);
      }
    }
    // After this meeting of all ranks nothing is allocated or loaded any more: that could wait for a running kernel of
    // another rank on the same GPU.
    budget_.num_multiprocessors = std::max(gpu::num_multiprocessors(device_.index) / ranks_on_this_gpu(), 1);
    // A kernel that waits for its turn takes room that kernels of another rank on the same GPU may need.
    budget_.overlaps = budget_.has_bulk_copies && budget_.num_multiprocessors == gpu::num_multiprocessors(device_.index);
    budget_.limited = config.num_multiprocessors > 0;
    if (budget_.limited) budget_.num_multiprocessors = std::min(budget_.num_multiprocessors, config.num_multiprocessors);
    owners_ = make_owners();
    if (config.copy_engine) copies_ = std::make_unique<CopyEngine>(*comm_, config, *windows_, device_);
    if (copies_ && !copies_->problem().empty())
      notices_of(context).lines.push_back("copy_engine is replaced by other variants of dispatch and combine: " +
                                          copies_->problem());
  }
  ~GpuBackend() override {
    try {
      gpu::synchronize_device(device_);  // kernels still write into the windows
      comm_->barrier();                  // and so do those of the peers
    } catch (const Error&) {
    }
  }

  void require_usable() const override {
    const Status& end = *own_.end();
    if (!end.ok()) throw Error(end.code, describe(end));
  }
  void refuse(ExchangeStage, const Error&) override {}  // the peers' wait ends at the deadline

  std::shared_ptr<RoutingState> prepare_dispatch(const DispatchArgs& args, const RoutingState* replay, Status&) override;
  void prepare_combine(const CombineArgs& args, const RoutingState& state) override {
    combine_args_ = make_args(args, static_cast<const GpuRouting&>(state).counts_on_device);
    combine_mover_ = choice().of(args, combine_args_);
  }
  ReceivedRows dispatch_send(const DispatchArgs& args, RoutingState& state, Status& status, Stream stream) override;
  void dispatch_receive(Stream stream) override;
  void combine_send(const CombineArgs& args, const RoutingState& state, Status& status, Stream stream) override;
  void combine_receive(Stream stream) override;
  std::vector<int> masked_ranks() const override;
  ConstTensorView expert_map() const override { return {own_.expert_map(), DType::i32, {config_.num_experts}, device_}; }

 private:
  int64_t bytes_per_rank(bool checks) {
    comm_->require_equal("MIXLANE_CHECK", checks ? "protocol" : "nothing");
    return layout_.total_bytes + (checks ? ProtocolCheck::window_bytes(layout_, config_, comm_->num_ranks()) : 0);
  }
  int ranks_on_this_gpu();
  ExpertOwners make_owners() const;
  Exchange make_exchange(ExchangeStage stage, Status* status) const;
  DispatchKernelArgs make_args(const DispatchArgs& args) const;
  CombineKernelArgs make_args(const CombineArgs& args, bool counts_on_device) const;
  ReceivedRows received_rows() const;
  ReadyRows ready_rows() const;
  // Whether calls whose number of tokens is on the device use the inbox by that number: combine.latency does their combine
  // then, which neither a limit nor copy engines should be passed over for.
  bool counts_for_inbox() const { return layout_.inbox_rows > 0 && !budget_.limited && !config_.copy_engine; }
  MoverChoice choice() const { return {context_, config_, comm_->num_ranks(), layout_.records, budget_, copies_.get()}; }

  Context& context_;
  Device device_;
  std::shared_ptr<Communicator> comm_;
  DispatcherConfig config_;
  GpuWindowLayout layout_;
  Fault fault_;
  std::shared_ptr<SymmetricMemory> windows_;
  GpuRankMemory own_;
  std::optional<ProtocolCheck> check_;
  DispatchArgs sent_;  // for the check, between the halves of a dispatch
  Stream stream_;      // of the last call
  Budget budget_;
  ExpertOwners owners_;
  DispatchKernelArgs dispatch_args_;  // of the call that is being prepared
  Mover dispatch_mover_ = Mover::stores;
  CombineKernelArgs combine_args_;
  Mover combine_mover_ = Mover::stores;
  std::shared_ptr<GpuRouting> states_[2];
  std::unique_ptr<CopyEngine> copies_;  // if the configuration asks for it
};

int GpuBackend::ranks_on_this_gpu() {
  const std::string own = gpu::bus_id(device_.index);
  const std::vector<std::string> all = comm_->all_gather(own);
  return static_cast<int>(std::count(all.begin(), all.end(), own));
}

// Arithmetic where it gives the owners, else a table.
ExpertOwners GpuBackend::make_owners() const {
  const auto num_experts = static_cast<uint32_t>(config_.num_experts);
  const auto num_ranks = static_cast<uint32_t>(comm_->num_ranks());
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

Exchange GpuBackend::make_exchange(ExchangeStage stage, Status* status) const {
  Exchange exchange;
  Window& window = exchange.window;
  for (int r = 0; r < comm_->num_ranks(); ++r) window.parts[r] = windows_->part(r);
  window.rank = comm_->rank();
  window.num_ranks = comm_->num_ranks();
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
  exchange.deadline_ns = static_cast<uint64_t>(std::chrono::nanoseconds(comm_->deadline()).count());
  exchange.fail_on_timeout = config_.on_peer_timeout == OnPeerTimeout::fail;
  exchange.jitter_ns = static_cast<uint32_t>(1000 * fault_.jitter_us);
  if (fault_.hits(stage, comm_->rank(), fault_.epoch) && fault_.stall_ms >= 0) {
    exchange.stall_epoch = static_cast<uint32_t>(fault_.epoch);
    exchange.stall_ns = static_cast<uint64_t>(fault_.stall_ms) * 1'000'000;
  }
  exchange.routing = own_.routing();
  return exchange;
}

// ---------------------------------------------------------------------------------------------------------------------
// Dispatch

DispatchKernelArgs GpuBackend::make_args(const DispatchArgs& args) const {
  DispatchKernelArgs to;
  to.exchange = make_exchange(ExchangeStage::dispatch, args.status);
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
  to.inbox_by_count = !to.wants_inbox && args.num_tokens.given() && counts_for_inbox();
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

std::shared_ptr<RoutingState> GpuBackend::prepare_dispatch(const DispatchArgs& args, const RoutingState* replay, Status&) {
  dispatch_args_ = make_args(args);
  dispatch_mover_ = choice().of(args, dispatch_args_);
  // Replayed ids give the same slots again.
  std::shared_ptr<GpuRouting>& state = states_[states_[0].get() == replay || states_[0].use_count() > 1 ? 1 : 0];
  if (replay != nullptr)
    for (const auto& held : states_)
      if (held.get() == replay) return held;
  if (!state || state.use_count() > 1) {
    state = std::make_shared<GpuRouting>();
    state->on_device = &own_.routing();
    state->counts.sent.resize(static_cast<size_t>(comm_->num_ranks()));
    state->counts.received.resize(static_cast<size_t>(comm_->num_ranks()));
  }
  state->num_rows = args.hidden.shape[0];
  state->num_tokens = state->num_rows;
  return state;
}

ReceivedRows GpuBackend::dispatch_send(const DispatchArgs& args, RoutingState& state, Status&, Stream stream) {
  const gpu::DeviceGuard guard(device_);
  stream_ = stream;
  auto& routing = static_cast<GpuRouting&>(state);
  routing.stream = stream;
  routing.counts_on_device = args.num_tokens.given();
  if (check_) check_->before_dispatch(dispatch_args_, budget_, stream);
  if (dispatch_mover_ == Mover::copy_engines)
    copies_->send(dispatch_args_, budget_, stream);
  else if (dispatch_mover_ == Mover::bulk_copies)
    launch_dispatch_bulk(dispatch_args_, !config_.early_rows, budget_, stream);
  else
    launch_dispatch(dispatch_args_, payload_of(config_, args), budget_, stream);
  if (check_) {
    sent_ = args;
    sent_.replay = {};  // which would keep its state in use
  }
  ReceivedRows received = received_rows();
  if (config_.early_rows && dispatch_mover_ == Mover::bulk_copies) received.ready = ready_rows();
  return received;
}

void GpuBackend::dispatch_receive(Stream stream) {
  if (dispatch_mover_ == Mover::stores && !check_) return;
  const gpu::DeviceGuard guard(device_);
  if (dispatch_mover_ == Mover::copy_engines) copies_->receive(dispatch_args_, stream);
  if (dispatch_mover_ == Mover::bulk_copies && config_.early_rows)
    launch_dispatch_bulk_receive(dispatch_args_, budget_, stream);
  if (check_) check_->after_dispatch(sent_, dispatch_args_, payload_of(config_, sent_), budget_, stream);
}

ReceivedRows GpuBackend::received_rows() const {
  ReceivedRows received = columns_of(layout_.records, config_, windows_->part(comm_->rank()) + layout_.records_at, device_);
  received.recv_count = TensorView(own_.routing().recv_count, DType::i32, {comm_->num_ranks()}, device_);
  return received;
}

ReadyRows GpuBackend::ready_rows() const {
  const std::byte* const own = windows_->part(comm_->rank());
  ReadyRows ready;
  ready.sources = &reinterpret_cast<const SourceLine*>(own)->dispatch_header;
  ready.source_stride = sizeof(SourceLine) / sizeof(uint64_t);
  ready.blocks = reinterpret_cast<const uint64_t*>(own + layout_.done_at);
  ready.block_stride = kMaxSendBlocks;
  ready.closed = &own_.state()->dispatch_epoch;
  ready.left_out = own_.masked();
  ready.deadline_ns = static_cast<uint64_t>(std::chrono::nanoseconds(comm_->deadline()).count());
  return ready;
}

// ---------------------------------------------------------------------------------------------------------------------
// Combine

CombineKernelArgs GpuBackend::make_args(const CombineArgs& args, bool counts_on_device) const {
  CombineKernelArgs to;
  to.exchange = make_exchange(ExchangeStage::combine, args.status);
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
  to.inbox_by_count = !to.uses_inbox && counts_on_device && counts_for_inbox();
  return to;
}

void GpuBackend::combine_send(const CombineArgs&, const RoutingState&, Status&, Stream stream) {
  const gpu::DeviceGuard guard(device_);
  stream_ = stream;
  if (check_) check_->before_combine(combine_args_, budget_, stream);
  if (combine_mover_ == Mover::copy_engines)
    copies_->send(combine_args_, budget_, stream);
  else if (combine_mover_ == Mover::bulk_copies)
    launch_combine_bulk(combine_args_, config_.combine_wire, budget_, stream);
  else
    launch_combine(combine_args_, config_.combine_wire, budget_, stream);
}

void GpuBackend::combine_receive(Stream stream) {
  const bool by_copies = combine_mover_ == Mover::copy_engines;
  if (!by_copies && !check_) return;
  const gpu::DeviceGuard guard(device_);
  if (by_copies) copies_->receive(combine_args_, budget_, stream);
  if (check_)
    check_->after_combine(combine_args_, !combine_args_.uses_inbox && !combine_args_.inbox_by_count, budget_, stream);
}

std::vector<int> GpuBackend::masked_ranks() const {
  const gpu::DeviceGuard guard(device_);
  uint32_t masked = 0;
  gpu::copy(&masked, own_.masked(), sizeof(masked), stream_);
  gpu::synchronize(stream_);
  std::vector<int> ranks;
  for (int r = 0; r < comm_->num_ranks(); ++r)
    if ((masked >> r & 1u) != 0) ranks.push_back(r);
  return ranks;
}

}  // namespace

std::unique_ptr<ExchangeBackend> make_gpu_backend(Context& context, std::shared_ptr<Communicator> comm,
                                                  const DispatcherConfig& config) {
  if (comm->num_ranks() > kMaxRanks)
    fail(ErrorCode::unsupported, "{} ranks; on GPUs dispatch and combine take at most {} in one node", comm->num_ranks(),
         kMaxRanks);
  return std::make_unique<GpuBackend>(context, std::move(comm), config);
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
