// The backend of ranks on the GPUs of one host that write into each other's windows: what a group owns, and who does what of
// a call.
#include "ops/dispatch/backend.hpp"

#include <algorithm>
#include <optional>

#include "core/env.hpp"
#include "core/error.hpp"
#include "core/notices.hpp"
#include "gpu/peer.hpp"
#include "ops/dispatch/check/check.hpp"
#include "ops/dispatch/copy_engine/copy_engine.hpp"
#include "ops/dispatch/gpu/call_arguments.hpp"
#include "ops/dispatch/gpu/mover.hpp"

namespace mixlane {
namespace {

using namespace exchange_gpu;

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
        own_(device_, config, comm_->num_ranks(), comm_->rank()),
        arguments_(*comm_, config_, layout_, *windows_, own_, fault_) {
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
    combine_args_ = arguments_.of(args, static_cast<const GpuRouting&>(state).counts_on_device);
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
  ReceivedRows received_rows() const;
  ReadyRows ready_rows() const;
  MoverChoice choice() const { return {context_, config_, comm_->num_ranks(), layout_.records, budget_, copies_.get()}; }

  Context& context_;
  Device device_;
  std::shared_ptr<Communicator> comm_;
  DispatcherConfig config_;
  GpuWindowLayout layout_;
  Fault fault_;
  std::shared_ptr<SymmetricMemory> windows_;
  GpuRankMemory own_;
  CallArguments arguments_;
  std::optional<ProtocolCheck> check_;
  DispatchArgs sent_;  // for the check, between the halves of a dispatch
  Stream stream_;      // of the last call
  Budget budget_;
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

// ---------------------------------------------------------------------------------------------------------------------
// Dispatch

std::shared_ptr<RoutingState> GpuBackend::prepare_dispatch(const DispatchArgs& args, const RoutingState* replay, Status&) {
  dispatch_args_ = arguments_.of(args);
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

}  // namespace mixlane
