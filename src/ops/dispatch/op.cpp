#include "ops/dispatch/op.hpp"

#include <algorithm>

#include "core/check.hpp"
#include "core/math.hpp"
#include "ops/dispatch/backend.hpp"
#include "ops/dispatch/gpu/layout.hpp"

namespace mixlane {
namespace {

constexpr VariantInfo kDispatchOnCpu{
    "dispatch.shm", "each rank writes its rows into the receivers' shared-memory windows; one flag per pair of ranks"};
constexpr VariantInfo kCombineOnCpu{
    "combine.shm", "each rank writes one partial sum per received row into its owner's window; the owner sums the ranks"};

void require_variant(std::string_view wanted, const VariantInfo& on_cpu, std::span<const VariantInfo> on_gpus,
                     Device device) {
  if (wanted == "auto") return;
  const auto table = device.type == DeviceType::cpu ? std::span(&on_cpu, 1) : on_gpus;
  std::string ids = "auto";
  for (const VariantInfo& variant : table) {
    if (wanted == variant.id) return;
    ids += fmt::format(", {}", variant.id);
  }
  fail(ErrorCode::invalid_argument, "unknown variant '{}' on {}; valid ones: {}", wanted, name(device.type), ids);
}

// ---------------------------------------------------------------------------------------------
// Validation

std::string text_of(const std::vector<int>& values) {
  std::string text;
  for (const int value : values) text += fmt::format("{}{}", text.empty() ? "" : ",", value);
  return text;
}

void require_equal_config(Communicator& comm, const DispatcherConfig& config) {
  comm.require_equal("hidden", std::to_string(config.hidden));
  comm.require_equal("num_topk", std::to_string(config.num_topk));
  comm.require_equal("num_experts", std::to_string(config.num_experts));
  comm.require_equal("max_tokens", std::to_string(config.max_tokens));
  comm.require_equal("capacity", std::to_string(config.capacity));
  comm.require_equal("wire", name(wire_dtype(config.wire)));
  comm.require_equal("the wire's scales", std::to_string(static_cast<int>(config.wire)));
  comm.require_equal("combine_wire", name(wire_dtype(config.combine_wire)));
  comm.require_equal("on_peer_timeout", config.on_peer_timeout == OnPeerTimeout::mask ? "mask" : "fail");
  comm.require_equal("copy_engine", config.copy_engine ? "yes" : "no");
  comm.require_equal("early_rows", config.early_rows ? "yes" : "no");
  comm.require_equal("expert_rank", text_of(config.expert_rank));
}

void validate(const DispatchArgs& args, const DispatcherConfig& config, Device device) {
  require_variant(args.variant, kDispatchOnCpu, dispatch_gpu_variants(), device);
  const int64_t hidden = config.hidden;
  if (config.wire == WireFormat::bf16) {
    require_tensor("hidden", args.hidden, {{DType::bf16}, {kAnySize, hidden}, true}, device);
  } else {
    require_tensor("hidden", args.hidden, {{DType::bf16, wire_dtype(config.wire)}, {kAnySize, hidden}, true}, device);
  }
  const int64_t num_rows = args.hidden.shape[0];
  if (num_rows > config.max_tokens)
    fail(ErrorCode::invalid_argument, "hidden has {} tokens, the dispatcher was made for {} per call; raise max_tokens",
         num_rows, config.max_tokens);
  if (args.hidden.dtype != DType::bf16) {
    if (config.wire == WireFormat::fp8_row)
      require_tensor("scales", args.scales, {{DType::f32}, {num_rows}}, device);
    else if (config.wire == WireFormat::mxfp4)
      require_tensor("scales", args.scales, {{DType::e8m0}, {num_rows, ceil_div(hidden, 32)}, true}, device);
    else
      require_tensor("scales", args.scales, {{DType::f32}, {num_rows, ceil_div(hidden, 128)}, true}, device);
  } else if (args.scales.given()) {
    fail(ErrorCode::invalid_argument, "scales are given with hidden in {}; they belong to fp8_e4m3 and fp4_e2m1",
         name(args.hidden.dtype));
  }
  require_tensor("topk_ids", args.topk_ids, {{DType::i32}, {num_rows, config.num_topk}}, device);
  require_tensor("topk_weights", args.topk_weights, {{DType::f32}, {num_rows, config.num_topk}}, device);
  require_tensor_if_given("num_tokens", args.num_tokens, {{DType::i32}, {1}}, device);
}

void validate_replay(const DispatchArgs& args, const RoutingState* replay, const RoutingState* current) {
  if (replay == nullptr) return;
  if (replay != current)
    fail(ErrorCode::invalid_argument, "the handle to replay is not of this dispatcher's last dispatch; dispatch without it");
  if (args.hidden.shape[0] != replay->num_rows)
    fail(ErrorCode::invalid_argument, "hidden has {} tokens, the dispatch to replay had {}", args.hidden.shape[0],
         replay->num_rows);
}

void validate(const CombineArgs& args, const RoutingState* routing, const RoutingState* current,
              const DispatcherConfig& config, int num_ranks, Device device) {
  require_variant(args.variant, kCombineOnCpu, combine_gpu_variants(), device);
  if (routing == nullptr || routing != current)
    fail(ErrorCode::invalid_argument, "{}; pass the handle of this dispatcher's last dispatch",
         routing == nullptr ? "the routing handle is empty" : "the routing handle is out of date");
  const int64_t hidden = config.hidden, rows = int64_t{num_ranks} * config.capacity;
  const bool reduced = args.reduced_rows.given();
  if (reduced == args.expert_rows.given() || reduced == args.pair_slots.given())
    fail(ErrorCode::invalid_argument, "give either expert_rows and pair_slots or reduced_rows; given are {} {} {}",
         args.expert_rows.given() ? "expert_rows" : "-", args.pair_slots.given() ? "pair_slots" : "-",
         reduced ? "reduced_rows" : "-");
  if (reduced) {
    require_tensor("reduced_rows", args.reduced_rows, {{DType::bf16, DType::f32}, {rows, hidden}, true}, device);
  } else {
    require_tensor("expert_rows", args.expert_rows, {{DType::bf16}, {kAnySize, hidden}, true}, device);
    require_tensor("pair_slots", args.pair_slots, {{DType::i32}, {rows, config.num_topk}}, device);
  }
  require_tensor_if_given("addend", args.addend, {{DType::bf16, DType::f32}, {routing->num_rows, hidden}, true}, device);
  require_tensor("output", args.output, {{DType::bf16, DType::f32}, {routing->num_rows, hidden}, true}, device);
}

}  // namespace

// ---------------------------------------------------------------------------------------------
// Dispatcher

struct Dispatcher::Impl {
  Context& context;
  std::shared_ptr<Communicator> comm;
  DispatcherConfig config;
  int num_local_experts = 0;
  std::unique_ptr<ExchangeBackend> backend;
  std::shared_ptr<RoutingState> current;  // of the last dispatch
  const char* sent = nullptr;             // the stage whose second half is still to come

  // Elsewhere the device writes the caller's status.
  bool on_host() const { return context.device().type == DeviceType::cpu; }

  void require_received() const {
    if (sent)
      fail(ErrorCode::invalid_argument, "a call of this dispatcher while its {0}_send has no {0}_receive; call that first",
           sent);
  }
  void receive(const char* stage) {
    if (sent == nullptr || std::string_view(sent) != stage)
      fail(ErrorCode::invalid_argument, "{0}_receive without a {0}_send before it", stage);
    sent = nullptr;
  }

  // Runs what may refuse a call; the peers learn of it.
  template <class Check>
  auto checked(ExchangeStage stage, Check&& check) {
    require_received();
    backend->require_usable();
    try {
      return check();
    } catch (const Error& error) {
      backend->refuse(stage, error);
      throw;
    }
  }
};

Dispatcher::Dispatcher(Context& context, std::shared_ptr<Communicator> comm, const DispatcherConfig& config) {
  const bool on_cpu = context.device().type == DeviceType::cpu;
  require_equal_config(*comm, config);
  DispatcherConfig full = completed(config, comm->num_ranks());
  const auto num_local = static_cast<int>(std::count(full.expert_rank.begin(), full.expert_rank.end(), comm->rank()));
  impl_.reset(new Impl{context, comm, full, num_local, nullptr, nullptr});
  impl_->backend =
      on_cpu ? make_shm_backend(context, std::move(comm), full) : make_gpu_backend(context, std::move(comm), full);
}

Dispatcher::~Dispatcher() = default;
Dispatcher::Dispatcher(Dispatcher&&) noexcept = default;

ReceivedRows Dispatcher::dispatch(const DispatchArgs& args, Stream stream) {
  const ReceivedRows received = dispatch_send(args, stream);
  dispatch_receive(stream);
  return received;
}

void Dispatcher::dispatch_receive(Stream stream) {
  impl_->receive("dispatch");
  impl_->backend->dispatch_receive(stream);
}

ReceivedRows Dispatcher::dispatch_send(const DispatchArgs& args, Stream stream) {
  Impl& impl = *impl_;
  Status status;
  const RoutingState* replay = args.replay.state_.get();
  std::shared_ptr<RoutingState> state = impl.checked(ExchangeStage::dispatch, [&] {
    validate(args, impl.config, impl.context.device());
    validate_replay(args, replay, impl.current.get());
    auto prepared = impl.backend->prepare_dispatch(args, replay, status);
    if (args.status == nullptr) throw_if_failed(status);
    return prepared;
  });
  impl.current = state;
  ReceivedRows received = impl.backend->dispatch_send(args, *state, status, stream);
  received.handle.state_ = std::move(state);
  if (impl.on_host()) deliver(status, args.status);
  impl.sent = "dispatch";
  return received;
}

void Dispatcher::combine(const CombineArgs& args, Stream stream) {
  combine_send(args, stream);
  combine_receive(stream);
}

void Dispatcher::combine_receive(Stream stream) {
  impl_->receive("combine");
  impl_->backend->combine_receive(stream);
}

void Dispatcher::combine_send(const CombineArgs& args, Stream stream) {
  Impl& impl = *impl_;
  const RoutingState* routing = args.handle.state_.get();
  impl.checked(ExchangeStage::combine, [&] {
    validate(args, routing, impl.current.get(), impl.config, num_ranks(), impl.context.device());
    impl.backend->prepare_combine(args, *routing);
  });
  Status status;
  impl.backend->combine_send(args, *routing, status, stream);
  if (impl.on_host()) deliver(status, args.status);
  impl.sent = "combine";
}

const DispatcherConfig& Dispatcher::config() const { return impl_->config; }
int Dispatcher::rank() const { return impl_->comm->rank(); }
int Dispatcher::num_ranks() const { return impl_->comm->num_ranks(); }
int Dispatcher::num_local_experts() const { return impl_->num_local_experts; }
std::vector<int> Dispatcher::masked_ranks() const { return impl_->backend->masked_ranks(); }

ConstTensorView Dispatcher::expert_map() const { return impl_->backend->expert_map(); }

std::vector<int32_t> local_expert_map(const DispatcherConfig& config, int rank) {
  std::vector<int32_t> map;
  int32_t num_local = 0;
  for (const int owner : config.expert_rank) map.push_back(owner == rank ? num_local++ : -1);
  return map;
}

int64_t Dispatcher::window_bytes(const DispatcherConfig& config, int num_ranks, DeviceType device) {
  const DispatcherConfig full = completed(config, num_ranks);
  if (device == DeviceType::cpu) return WindowLayout(full, num_ranks).total_bytes;
  return GpuWindowLayout(full, num_ranks).total_bytes;
}

// ---------------------------------------------------------------------------------------------
// Facts

struct RoutingAccess {
  // The counts are the state's to fetch, even from a handle that changes nothing else.
  static RoutingState* state(const RoutingHandle& handle) { return const_cast<RoutingState*>(handle.state_.get()); }
};

const DispatchCounts& counts(const RoutingHandle& handle) {
  if (!handle.valid()) fail(ErrorCode::invalid_argument, "the routing handle is empty; pass one that dispatch returned");
  RoutingState* const state = RoutingAccess::state(handle);
  state->fetch_counts();
  return state->counts;
}

namespace {

int64_t sum(const std::vector<int32_t>& values) {
  int64_t total = 0;
  for (const int32_t value : values) total += value;
  return total;
}

}  // namespace

ExchangeCost dispatch_cost(const DispatcherConfig& config, const DispatchCounts& counts, int rank, int64_t num_tokens,
                           DType input) {
  const WindowLayout layout(config, static_cast<int>(counts.sent.size()));
  const int64_t input_scales = input == DType::bf16 ? 0 : size_bytes(layout.scale_dtype, layout.num_scales);
  const int64_t input_row = size_bytes(input, config.hidden) + input_scales + int64_t{8} * config.num_topk;
  ExchangeCost cost;
  cost.bytes = num_tokens * input_row + sum(counts.sent) * layout.record_bytes;
  cost.logical_bytes = sum(counts.received) * layout.record_bytes;
  cost.remote_bytes = cost.logical_bytes - counts.received[rank] * layout.record_bytes;
  return cost;
}

ExchangeCost combine_cost(const DispatcherConfig& config, const DispatchCounts& counts, int rank,
                          const CombineShape& shape) {
  const WindowLayout layout(config, static_cast<int>(counts.sent.size()));
  const int64_t output_row = size_bytes(shape.output, config.hidden) + shape.addend_row_bytes;
  ExchangeCost cost;
  cost.logical_bytes = sum(counts.sent) * layout.partial_bytes;
  cost.remote_bytes = cost.logical_bytes - counts.sent[rank] * layout.partial_bytes;
  cost.bytes = shape.num_rows * size_bytes(shape.row, config.hidden) + sum(counts.received) * layout.partial_bytes +
               cost.logical_bytes + shape.num_tokens * output_row;
  return cost;
}

std::vector<VariantInfo> dispatch_variants() {
  std::vector<VariantInfo> all{kDispatchOnCpu};
  for (const VariantInfo& variant : dispatch_gpu_variants()) all.push_back(variant);
  return all;
}

std::vector<VariantInfo> combine_variants() {
  std::vector<VariantInfo> all{kCombineOnCpu};
  for (const VariantInfo& variant : combine_gpu_variants()) all.push_back(variant);
  return all;
}

}  // namespace mixlane
