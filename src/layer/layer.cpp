#include "mixlane/layer.hpp"

#include <algorithm>

#include "core/arena.hpp"
#include "core/check.hpp"
#include "ops/addend/op.hpp"

namespace mixlane {

std::string_view name(Stage stage) {
  switch (stage) {
    case Stage::routing: return "routing";
    case Stage::dispatch: return "dispatch";
    case Stage::align: return "align";
    case Stage::experts: return "experts";
    case Stage::shared_experts: return "shared_experts";
    case Stage::combine: return "combine";
  }
  return "unknown";
}

namespace {

// Most rows and slots that one forward can meet.
struct Capacities {
  int64_t tokens;  // of this rank
  int64_t rows;    // of the receive window
  int64_t slots;   // of the experts' output
};

Capacities capacities(const Dispatcher& dispatcher, int align_block) {
  const DispatcherConfig& config = dispatcher.config();
  const int64_t rows = int64_t{dispatcher.num_ranks()} * config.capacity;
  // A row meets an expert at most once per k, but duplicates in a token count each time.
  const int64_t pairs = dispatcher.num_local_experts() == 0 ? 0 : rows * config.num_topk;
  return {config.max_tokens, rows, align_capacity(pairs, dispatcher.num_local_experts(), align_block)};
}

DispatcherConfig complete(DispatcherConfig dispatch, const MoeLayerConfig& config, const MoeLayerWeights& weights) {
  if (dispatch.hidden == 0) dispatch.hidden = weights.experts.hidden;
  if (dispatch.num_topk == 0) dispatch.num_topk = config.routing.num_topk;
  if (dispatch.num_experts == 0)
    dispatch.num_experts =
        weights.replica_offsets.given() ? static_cast<int>(weights.replica_ids.shape[0]) : config.routing.num_experts;
  return dispatch;
}

}  // namespace

struct MoeLayer::Impl {
  Context& context;
  std::shared_ptr<Dispatcher> dispatcher;
  MoeLayerConfig config;
  MoeLayerWeights weights;
  Capacities capacity;
  Arena buffers;  // of the layer alone: the context's arena is the stages'
  StageHook stage_hook;
  ForwardView last;

  Impl(Context& context_, std::shared_ptr<Dispatcher> dispatcher_, const MoeLayerConfig& config_,
       const MoeLayerWeights& weights_);

  int hidden() const { return weights.experts.hidden; }
  int topk() const { return config.routing.num_topk; }
  bool has_shared() const { return weights.shared.num_experts == 1; }
  bool has_zero_experts() const { return config.routing.num_zero_experts > 0; }

  void check_against_dispatcher() const;
  TensorView take(DType dtype, std::initializer_list<int64_t> shape);
  template <class Body>
  void staged(Stage stage, Stream stream, Body&& body) {
    if (stage_hook) stage_hook(stage, true, stream);
    body();
    if (stage_hook) stage_hook(stage, false, stream);
  }

  struct Routed {
    TensorView ids, weights, zero_weights;
  };
  struct Aligned {
    TensorView sorted_pairs{}, num_padded{}, expert_counts{}, expert_offsets{}, pair_slots{};
  };
  Routed run_routing(const MoeLayerArgs& args, Status& status, Stream stream);
  Aligned run_align(const ReceivedRows& received, Status& status, Stream stream);
  TensorView run_routed_experts(const ReceivedRows& received, const Aligned& aligned, Stream stream);
  ConstTensorView run_local_terms(const MoeLayerArgs& args, const Routed& routed, Stream stream);
  void forward(const MoeLayerArgs& args, Stream stream);
};

MoeLayer::Impl::Impl(Context& context_, std::shared_ptr<Dispatcher> dispatcher_, const MoeLayerConfig& config_,
                     const MoeLayerWeights& weights_)
    : context(context_),
      dispatcher(std::move(dispatcher_)),
      config(config_),
      weights(weights_),
      capacity(capacities(*dispatcher, config.align_block)),
      buffers(context.device()) {
  validate(config.routing);
  check_against_dispatcher();
  const int64_t h = hidden(), k = topk(), local = dispatcher->num_local_experts();
  int64_t bytes = 2 * Arena::rounded(capacity.tokens * k * 4) + Arena::rounded(capacity.tokens * 4);      // routed
  bytes += Arena::rounded(capacity.slots * 4) + Arena::rounded(capacity.slots / config.align_block * 4);  // aligned
  bytes += Arena::rounded(8) + Arena::rounded(local * 4) + Arena::rounded((local + 1) * 4);
  bytes += Arena::rounded(capacity.rows * k * 4);
  bytes += Arena::rounded(capacity.slots * h * 2);   // expert rows
  bytes += Arena::rounded(capacity.tokens * h * 2);  // shared rows
  bytes += Arena::rounded(capacity.tokens * h * 4);  // addend
  buffers.reserve(bytes);
}

void MoeLayer::Impl::check_against_dispatcher() const {
  const DispatcherConfig& d = dispatcher->config();
  const auto same = [](std::string_view what, int64_t layer, int64_t exchange) {
    if (layer != exchange)
      fail(ErrorCode::invalid_argument, "{} is {} in the layer but {} in its dispatcher; make them equal", what, layer,
           exchange);
  };
  same("hidden", weights.experts.hidden, d.hidden);
  same("num_topk", config.routing.num_topk, d.num_topk);
  same("number of local experts", weights.experts.num_experts, dispatcher->num_local_experts());
  same("number of physical experts",
       weights.replica_offsets.given() ? weights.replica_ids.shape[0] : config.routing.num_experts, d.num_experts);
  if (has_shared()) same("hidden of the shared expert", weights.shared.hidden, d.hidden);
  if (weights.shared.num_experts > 1)
    fail(ErrorCode::invalid_argument,
         "weights.shared holds {} experts; join the shared experts into one of their summed width",
         weights.shared.num_experts);
  if (config.align_block < 1 || config.align_block > 1024)
    fail(ErrorCode::invalid_argument, "align_block is {}; it must be 1..1024", config.align_block);
}

TensorView MoeLayer::Impl::take(DType dtype, std::initializer_list<int64_t> shape) {
  TensorView taken(nullptr, dtype, shape, context.device());
  taken.data = buffers.take(size_bytes(dtype, taken.num_values()));
  return taken;
}

MoeLayer::Impl::Routed MoeLayer::Impl::run_routing(const MoeLayerArgs& args, Status& status, Stream stream) {
  const int64_t num_tokens = args.hidden.shape[0];
  Routed routed{take(DType::i32, {num_tokens, topk()}), take(DType::f32, {num_tokens, topk()}), {}};
  if (has_zero_experts()) routed.zero_weights = take(DType::f32, {num_tokens});
  route(context,
        {.config = config.routing,
         .logits = args.logits,
         .correction_bias = weights.correction_bias,
         .num_valid_rows = args.num_tokens,
         .hash_table = args.hash_table,
         .token_ids = args.token_ids,
         .replica_offsets = weights.replica_offsets,
         .replica_ids = weights.replica_ids,
         .topk_ids = routed.ids,
         .topk_weights = routed.weights,
         .zero_weights = routed.zero_weights,
         .status = &status,
         .variant = config.routing_variant},
        stream);
  return routed;
}

MoeLayer::Impl::Aligned MoeLayer::Impl::run_align(const ReceivedRows& received, Status& status, Stream stream) {
  const int64_t local = dispatcher->num_local_experts();
  // A rank without experts receives no rows: combine reads nothing of these.
  if (local == 0) return {.pair_slots = take(DType::i32, {capacity.rows, topk()})};
  const Aligned aligned{take(DType::i32, {capacity.slots}), take(DType::i32, {2}), take(DType::i32, {local}),
                        take(DType::i32, {local + 1}), take(DType::i32, {capacity.rows, topk()})};
  align(context,
        {.topk_ids = received.topk_ids,
         .segment_rows = received.recv_count,
         .expert_map = dispatcher->expert_map(),
         .num_experts = dispatcher->config().num_experts,
         .num_local_experts = static_cast<int>(local),
         .block = config.align_block,
         .sorted_pairs = aligned.sorted_pairs,
         .num_padded = aligned.num_padded,
         .expert_counts = aligned.expert_counts,
         .expert_offsets = aligned.expert_offsets,
         .pair_slots = aligned.pair_slots,
         .status = &status,
         .variant = config.align_variant},
        stream);
  return aligned;
}

TensorView MoeLayer::Impl::run_routed_experts(const ReceivedRows& received, const Aligned& aligned, Stream stream) {
  const TensorView rows = take(DType::bf16, {capacity.slots, hidden()});
  if (dispatcher->num_local_experts() == 0) return rows;
  run_experts(context,
              {.weights = weights.experts,
               .activation = config.activation,
               .rows = received.rows,
               .row_scales = received.scales,
               .num_topk = topk(),
               .sorted_pairs = aligned.sorted_pairs,
               .expert_counts = aligned.expert_counts,
               .expert_offsets = aligned.expert_offsets,
               .input_weights = config.routing.weight_on_input ? received.topk_weights : TensorView(),
               .output = rows,
               .batch_invariant = config.batch_invariant,
               .variant = config.experts_variant},
              stream);
  return rows;
}

// What combine adds to a token's routed sum: nothing, the shared expert's bf16 rows as they are, or an f32 sum.
ConstTensorView MoeLayer::Impl::run_local_terms(const MoeLayerArgs& args, const Routed& routed, Stream stream) {
  if (!has_shared() && !has_zero_experts()) return {};
  const int64_t num_tokens = args.hidden.shape[0];
  TensorView shared_rows;
  if (has_shared()) {
    shared_rows = take(DType::bf16, {num_tokens, hidden()});
    run_experts(context,
                {.weights = weights.shared,
                 .activation = config.activation,
                 .rows = args.hidden,
                 .output = shared_rows,
                 .batch_invariant = config.batch_invariant,
                 .variant = config.experts_variant},
                stream);
    if (!has_zero_experts() && !weights.shared_gate.given()) return shared_rows;
  }
  const TensorView addend = take(DType::f32, {num_tokens, hidden()});
  add_local_terms(context,
                  {.hidden = args.hidden,
                   .shared_rows = shared_rows,
                   .shared_gate = has_shared() ? weights.shared_gate : ConstTensorView(),
                   .zero_weights = routed.zero_weights,
                   .output = addend},
                  stream);
  return addend;
}

void MoeLayer::Impl::forward(const MoeLayerArgs& args, Stream stream) {
  const Device device = context.device();
  require_tensor("hidden", args.hidden, {{DType::bf16}, {kAnySize, hidden()}, true}, device);
  const int64_t num_tokens = args.hidden.shape[0];
  require_tensor("output", args.output, {{DType::bf16, DType::f32}, {num_tokens, hidden()}, true}, device);
  require_tensor("logits", args.logits,
                 {{DType::f32, DType::bf16, DType::f16},
                  {num_tokens, config.routing.num_experts + config.routing.num_zero_experts},
                  true},
                 device);

  Arena::Scope scope(buffers);
  Status status;
  Routed routed;
  Aligned aligned;
  TensorView expert_rows;
  ConstTensorView addend;
  ReceivedRows received;
  staged(Stage::routing, stream, [&] { routed = run_routing(args, status, stream); });
  staged(Stage::dispatch, stream, [&] {
    received = dispatcher->dispatch({.hidden = args.hidden,
                                     .topk_ids = routed.ids,
                                     .topk_weights = routed.weights,
                                     .num_tokens = args.num_tokens,
                                     .status = &status,
                                     .variant = config.dispatch_variant},
                                    stream);
  });
  staged(Stage::align, stream, [&] { aligned = run_align(received, status, stream); });
  staged(Stage::experts, stream, [&] { expert_rows = run_routed_experts(received, aligned, stream); });
  if (has_shared() || has_zero_experts())
    staged(Stage::shared_experts, stream, [&] { addend = run_local_terms(args, routed, stream); });
  staged(Stage::combine, stream, [&] {
    dispatcher->combine({.handle = received.handle,
                         .expert_rows = expert_rows,
                         .pair_slots = aligned.pair_slots,
                         .apply_weights = !config.routing.weight_on_input,
                         .addend = addend,
                         .output = args.output,
                         .status = &status,
                         .variant = config.combine_variant},
                        stream);
  });
  last = {routed.ids, routed.weights, received, aligned.expert_counts};
  if (!status.ok() && status.rank < 0) status.rank = dispatcher->rank();  // routing and align don't know theirs
  deliver(status, args.status);
}

MoeLayer::MoeLayer(Context& context, std::shared_ptr<Dispatcher> dispatcher, const MoeLayerConfig& config,
                   const MoeLayerWeights& weights)
    : impl_(new Impl(context, std::move(dispatcher), config, weights)) {}

MoeLayer::MoeLayer(Context& context, std::shared_ptr<Communicator> comm, const MoeLayerConfig& config,
                   const MoeLayerWeights& weights)
    : MoeLayer(context, std::make_shared<Dispatcher>(context, std::move(comm), complete(config.dispatch, config, weights)),
               config, weights) {}

MoeLayer::~MoeLayer() = default;
void MoeLayer::forward(const MoeLayerArgs& args, Stream stream) { impl_->forward(args, stream); }
void MoeLayer::set_stage_hook(StageHook hook) { impl_->stage_hook = std::move(hook); }
Dispatcher& MoeLayer::dispatcher() { return *impl_->dispatcher; }
const ForwardView& MoeLayer::last_forward() const { return impl_->last; }
int64_t MoeLayer::workspace_bytes() const { return impl_->buffers.capacity_bytes(); }

}  // namespace mixlane
