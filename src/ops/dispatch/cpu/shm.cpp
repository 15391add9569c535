// dispatch.shm and combine.shm: ranks of one host that write into each other's windows.
#include <bit>
#include <cstring>

#include "core/arena.hpp"
#include "core/env.hpp"
#include "core/parallel.hpp"
#include "ops/dispatch/backend.hpp"
#include "ops/dispatch/cpu/fp8_partials.hpp"
#include "ops/dispatch/cpu/protocol.hpp"
#include "ops/dispatch/cpu/row_sum.hpp"
#include "ops/dispatch/fault.hpp"
#include "ops/quant/row.hpp"

namespace mixlane {
namespace {

constexpr int64_t kBytesPerThread = 1 << 18;  // below it a thread costs more than it saves
constexpr int kMaxTopk = 32;
constexpr int kMaxRanks = 64;

template <class Byte>
auto row_of(const BasicTensorView<Byte>& view, int64_t row) {
  using Target = std::conditional_t<std::is_const_v<Byte>, const std::byte, std::byte>;
  return static_cast<Target*>(view.data) + size_bytes(view.dtype, row * view.strides[0]);
}

class ShmBackend final : public ExchangeBackend {
 public:
  ShmBackend(Context& context, std::shared_ptr<Communicator> comm, const DispatcherConfig& config)
      : context_(context),
        config_(config),
        rank_(comm->rank()),
        num_ranks_(comm->num_ranks()),
        layout_(config, num_ranks_),
        expert_map_(local_expert_map(config, rank_)),
        fault_(parse_fault(context.env().fault)),
        protocol_(std::move(comm), layout_, config.on_peer_timeout) {}

  void require_usable() const override { protocol_.require_usable(); }
  void refuse(ExchangeStage stage, const Error& error) override { protocol_.refuse(stage, error); }

  std::shared_ptr<RoutingState> prepare_dispatch(const DispatchArgs& args, const RoutingState* replay,
                                                 Status& status) override;
  void prepare_combine(const CombineArgs& args, const RoutingState& routing) override;
  ReceivedRows dispatch_send(const DispatchArgs& args, RoutingState& state, Status& status, Stream stream) override;
  void combine_send(const CombineArgs& args, const RoutingState& state, Status& status, Stream stream) override;
  std::vector<int> masked_ranks() const override;
  ConstTensorView expert_map() const override {
    return {expert_map_.data(), DType::i32, {static_cast<int64_t>(expert_map_.size())}};
  }

 private:
  struct PartialSums;

  std::shared_ptr<HostRouting> unused_routing();
  int64_t rows_per_thread(int64_t row_bytes) const { return kBytesPerThread / row_bytes + 1; }

  void send_tokens(const DispatchArgs& args, const HostRouting& routing, int64_t begin, int64_t end);
  void send_token(const DispatchArgs& args, const HostRouting& routing, int64_t token);
  void write_record(const DispatchArgs& args, const HostRouting& routing, int64_t token, std::byte* record) const;
  void write_payload(const DispatchArgs& args, int64_t token, std::byte* record) const;
  ReceivedRows received_rows(RoutingState& state) const;

  void send_partials(const CombineArgs& args, int owner, int64_t begin, int64_t end);
  void sum_partials(const CombineArgs& args, const HostRouting& routing);

  Context& context_;
  DispatcherConfig config_;
  int rank_;
  int num_ranks_;
  WindowLayout layout_;
  std::vector<int32_t> expert_map_;
  Fault fault_;
  WindowProtocol protocol_;
  std::vector<std::shared_ptr<HostRouting>> routings_;
};

// ---------------------------------------------------------------------------------------------
// Dispatch

// Handles of earlier calls keep their state; two states take turns if the caller keeps one handle.
std::shared_ptr<HostRouting> ShmBackend::unused_routing() {
  for (const auto& routing : routings_)
    if (routing.use_count() == 1) return routing;
  routings_.push_back(std::make_shared<HostRouting>(config_, num_ranks_));
  return routings_.back();
}

std::shared_ptr<RoutingState> ShmBackend::prepare_dispatch(const DispatchArgs& args, const RoutingState* replay,
                                                           Status& status) {
  const int64_t num_rows = args.hidden.shape[0];
  int64_t num_tokens = num_rows;
  if (args.num_tokens.given()) {
    num_tokens = *args.num_tokens.as<int32_t>();
    if (num_tokens < 0 || num_tokens > num_rows)
      fail(ErrorCode::invalid_argument, "num_tokens holds {}; hidden has {} rows", num_tokens, num_rows);
  }
  const std::shared_ptr<HostRouting> routing = unused_routing();
  routing->num_rows = num_rows;
  routing->num_tokens = num_tokens;
  route(args.topk_ids.as<int32_t>(), num_tokens, config_, rank_, *routing, status);
  if (replay == nullptr) return routing;

  const auto& before = static_cast<const HostRouting&>(*replay);
  if (before.token_ranks != routing->token_ranks)
    fail(ErrorCode::invalid_argument,
         "num_tokens or topk_ids differ from those of the dispatch to replay; dispatch without it");
  for (const auto& held : routings_)
    if (held.get() == replay) return held;
  fail(ErrorCode::internal, "the handle to replay is not of this dispatcher");
}

void ShmBackend::write_payload(const DispatchArgs& args, int64_t token, std::byte* record) const {
  const std::byte* const row = row_of(args.hidden, token);
  std::byte* const scales = record + layout_.payload_bytes;
  if (layout_.scale_words > 0) std::memset(record + layout_.ids_at - 4, 0, 4);  // what the last word is filled up with
  if (config_.wire != WireFormat::bf16 && args.hidden.dtype == DType::bf16) {
    const auto* const values = reinterpret_cast<const uint16_t*>(row);
    auto* const codes = reinterpret_cast<uint8_t*>(record);
    if (config_.wire == WireFormat::mxfp4)
      quant::quantize_row_e2m1(values, config_.hidden, codes, reinterpret_cast<uint8_t*>(scales));
    else
      quant::quantize_row_e4m3(values, config_.hidden, config_.wire == WireFormat::fp8_row ? config_.hidden : 128, codes,
                               reinterpret_cast<float*>(scales));
    return;
  }
  std::memcpy(record, row, static_cast<size_t>(layout_.payload_bytes));
  if (layout_.num_scales > 0)
    std::memcpy(scales, row_of(args.scales, token),
                static_cast<size_t>(size_bytes(layout_.scale_dtype, layout_.num_scales)));
}

void ShmBackend::write_record(const DispatchArgs& args, const HostRouting& routing, int64_t token, std::byte* record) const {
  write_payload(args, token, record);
  const int num_topk = config_.num_topk;
  auto* const ids = reinterpret_cast<int32_t*>(record + layout_.ids_at);
  std::memcpy(ids, args.topk_ids.as<int32_t>() + token * num_topk, sizeof(int32_t) * num_topk);
  std::memcpy(record + layout_.weights_at, args.topk_weights.as<float>() + token * num_topk, sizeof(float) * num_topk);
  if (!routing.bad_ids) return;
  for (int k = 0; k < num_topk; ++k)
    if (ids[k] < -1 || ids[k] >= config_.num_experts) ids[k] = -1;
}

void ShmBackend::send_token(const DispatchArgs& args, const HostRouting& routing, int64_t token) {
  const int32_t* slot = routing.slots.data() + routing.first_slot[token];
  const std::byte* first = nullptr;
  for (uint64_t left = routing.token_ranks[token]; left != 0; left &= left - 1, ++slot) {
    const int to = std::countr_zero(left);
    if (protocol_.masked(to)) continue;
    std::byte* const record = layout_.record(protocol_.part(to), rank_, *slot);
    if (first == nullptr) {
      write_record(args, routing, token, record);
      first = record;  // this rank alone writes there, so it may be read back
    } else {
      std::memcpy(record, first, static_cast<size_t>(layout_.record_bytes));
    }
  }
}

void ShmBackend::send_tokens(const DispatchArgs& args, const HostRouting& routing, int64_t begin, int64_t end) {
  parallel_ranges(context_.num_threads(), end - begin, rows_per_thread(layout_.record_bytes), [&](int64_t from, int64_t to) {
    for (int64_t t = begin + from; t < begin + to; ++t) send_token(args, routing, t);
  });
}

ReceivedRows ShmBackend::dispatch_send(const DispatchArgs& args, RoutingState& state, Status& status, Stream) {
  auto& routing = static_cast<HostRouting&>(state);
  protocol_.begin(ExchangeStage::dispatch, status);
  int64_t sent = 0;
  if (fault_.hits(ExchangeStage::dispatch, rank_, protocol_.epoch())) {
    sent = routing.num_tokens / 2;
    send_tokens(args, routing, 0, sent);
    fault_.strike();
  }
  send_tokens(args, routing, sent, routing.num_tokens);
  for (int i = 1; i <= num_ranks_; ++i) {
    const int to = (rank_ + i) % num_ranks_;
    if (protocol_.masked(to)) routing.counts.sent[to] = 0;
    if (!protocol_.masked(to)) protocol_.post(to, routing.counts.sent[to]);
  }
  protocol_.finish(routing.counts.received, status);
  return received_rows(routing);
}

ReceivedRows ShmBackend::received_rows(RoutingState& state) const {
  ReceivedRows received = columns_of(layout_, config_, layout_.record(protocol_.part(rank_), 0, 0));
  received.recv_count = TensorView(state.counts.received.data(), DType::i32, {num_ranks_});
  return received;
}

// ---------------------------------------------------------------------------------------------
// Combine

void ShmBackend::prepare_combine(const CombineArgs& args, const RoutingState& routing) {
  if (args.reduced_rows.given()) return;
  const int64_t num_slots = args.expert_rows.shape[0], num_topk = config_.num_topk;
  for (int s = 0; s < num_ranks_; ++s) {
    const int64_t first = s * layout_.capacity * num_topk;
    const int32_t* const slots = args.pair_slots.as<int32_t>() + first;
    for (int64_t p = 0; p < routing.counts.received[s] * num_topk; ++p)
      if (slots[p] < -1 || slots[p] >= num_slots)
        fail(ErrorCode::invalid_argument, "pair_slots[{}, {}] is {}; expert_rows has {} rows", (first + p) / num_topk,
             p % num_topk, slots[p], num_slots);
  }
}

void ShmBackend::send_partials(const CombineArgs& args, int owner, int64_t begin, int64_t end) {
  const bool reduced = args.reduced_rows.given();
  const DType dtype = reduced ? args.reduced_rows.dtype : DType::bf16;
  const bool fp8 = config_.combine_wire == CombineWire::fp8_1x128;
  const RowSumKernel kernel = fp8 ? nullptr : row_sum_kernel(dtype, wire_dtype(config_.combine_wire));
  const int num_topk = config_.num_topk;
  parallel_ranges(context_.num_threads(), end - begin, rows_per_thread(layout_.partial_bytes),
                  [&](int64_t from, int64_t to) {
                    const void* rows[kMaxTopk];
                    float weights[kMaxTopk];
                    RowSum sum{.rows = rows, .size = config_.hidden};
                    for (int64_t slot = begin + from; slot < begin + to; ++slot) {
                      const int64_t row = owner * layout_.capacity + slot;
                      sum.num_rows = 0;
                      if (reduced) {
                        rows[sum.num_rows++] = row_of(args.reduced_rows, row);
                      } else {
                        const std::byte* const record = layout_.record(protocol_.part(rank_), owner, slot);
                        const auto* const given = reinterpret_cast<const float*>(record + layout_.weights_at);
                        const int32_t* const pairs = args.pair_slots.as<int32_t>() + row * num_topk;
                        for (int k = 0; k < num_topk; ++k) {
                          if (pairs[k] < 0) continue;
                          weights[sum.num_rows] = given[k];
                          rows[sum.num_rows++] = row_of(args.expert_rows, pairs[k]);
                        }
                        sum.weights = args.apply_weights ? weights : nullptr;
                      }
                      sum.out = layout_.partial(protocol_.part(owner), rank_, slot);
                      if (fp8)
                        sum_to_fp8(sum, dtype, layout_);
                      else
                        kernel(sum);
                    }
                  });
}

void ShmBackend::sum_partials(const CombineArgs& args, const HostRouting& routing) {
  const bool fp8 = config_.combine_wire == CombineWire::fp8_1x128;
  const RowSumKernel kernel = fp8 ? nullptr : row_sum_kernel(wire_dtype(config_.combine_wire), args.output.dtype);
  const int64_t grain = rows_per_thread(layout_.partial_bytes * std::min(num_ranks_, config_.num_topk));
  parallel_ranges(context_.num_threads(), routing.num_tokens, grain, [&](int64_t from, int64_t to) {
    const void* rows[kMaxRanks];
    RowSum sum{.rows = rows, .addend_dtype = args.addend.dtype, .size = config_.hidden};
    for (int64_t t = from; t < to; ++t) {
      sum.num_rows = 0;
      const int32_t* slot = routing.slots.data() + routing.first_slot[t];
      for (uint64_t left = routing.token_ranks[t]; left != 0; left &= left - 1, ++slot) {
        const int by = std::countr_zero(left);
        if (!protocol_.masked(by)) rows[sum.num_rows++] = layout_.partial(protocol_.part(rank_), by, *slot);
      }
      sum.addend = args.addend.given() ? row_of(args.addend, t) : nullptr;
      sum.out = row_of(args.output, t);
      if (fp8)
        sum_of_fp8(sum, args.output.dtype, layout_);
      else
        kernel(sum);
    }
  });
}

void ShmBackend::combine_send(const CombineArgs& args, const RoutingState& state, Status& status, Stream) {
  const auto& routing = static_cast<const HostRouting&>(state);
  protocol_.begin(ExchangeStage::combine, status);
  const bool fault = fault_.hits(ExchangeStage::combine, rank_, protocol_.epoch());
  for (int i = 1; i <= num_ranks_; ++i) {  // the own rows last: nobody else waits for them
    const int owner = (rank_ + i) % num_ranks_;
    if (protocol_.masked(owner)) continue;
    const int64_t num_rows = routing.counts.received[owner];
    int64_t sent = 0;
    if (fault && i == 1) {
      sent = num_rows / 2;
      send_partials(args, owner, 0, sent);
      fault_.strike();
    }
    send_partials(args, owner, sent, num_rows);
    protocol_.post(owner, static_cast<int32_t>(num_rows));
  }
  int32_t posted[kMaxRanks];
  protocol_.finish({posted, static_cast<size_t>(num_ranks_)}, status);
  sum_partials(args, routing);
}

std::vector<int> ShmBackend::masked_ranks() const {
  std::vector<int> ranks;
  for (int r = 0; r < num_ranks_; ++r)
    if (protocol_.masked(r)) ranks.push_back(r);
  return ranks;
}

}  // namespace

std::unique_ptr<ExchangeBackend> make_shm_backend(Context& context, std::shared_ptr<Communicator> comm,
                                                  const DispatcherConfig& config) {
  return std::make_unique<ShmBackend>(context, std::move(comm), config);
}

}  // namespace mixlane
