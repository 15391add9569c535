#include "measure/work.hpp"

#include <algorithm>
#include <vector>

#include "ops/experts/op.hpp"

namespace mixlane::bench {
namespace {

int64_t rounded_up(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

// A dispatched row: payload, scales, ids and weights.
int64_t row_bytes(const DispatcherConfig& config) {
  const int64_t meta = 8 * config.num_topk;
  if (config.wire == WireFormat::bf16) return 2 * config.hidden + meta;
  return config.hidden + 4 * (config.wire == WireFormat::fp8_row ? 1 : rounded_up(config.hidden, 128) / 128) + meta;
}

int64_t partial_row_bytes(const DispatcherConfig& config) {
  constexpr int64_t kBytes[] = {2, 4, 8};
  return config.hidden * kBytes[static_cast<int>(config.combine_wire)];
}

// (token, rank) rows that leave this rank, those to itself included, and those alone.
struct SentRows {
  int64_t all = 0, own = 0;
};

SentRows count_sent(const WorkRequest& request) {
  const ConstTensorView& ids = request.forward.topk_ids;
  SentRows sent;
  for (int64_t t = 0; t < ids.shape[0]; ++t) {
    uint64_t ranks = 0;
    for (int64_t k = 0; k < ids.shape[1]; ++k) {
      const int32_t id = ids.as<int32_t>()[t * ids.shape[1] + k];
      if (id >= 0) ranks |= uint64_t{1} << request.dispatch.expert_rank[id];
    }
    sent.all += __builtin_popcountll(ranks);
    sent.own += static_cast<int64_t>(ranks >> request.rank & 1);
  }
  return sent;
}

StageWork from_cost(const Cost& cost) { return {cost.bytes_read + cost.bytes_written, cost.flops, 0, 0}; }

int64_t sum(const ConstTensorView& counts) {
  int64_t total = 0;
  for (int64_t i = 0; i < counts.num_values(); ++i) total += counts.as<int32_t>()[i];
  return total;
}

}  // namespace

StageWork& StageWork::operator+=(const StageWork& other) {
  bytes += other.bytes;
  flops += other.flops;
  logical_bytes += other.logical_bytes;
  remote_bytes += other.remote_bytes;
  return *this;
}

LayerWork layer_work(const WorkRequest& request) {
  const RoutingConfig& routing = request.config.routing;
  const ForwardView& forward = request.forward;
  const int64_t num_tokens = forward.topk_ids.shape[0];
  const int64_t num_topk = routing.num_topk;
  const int64_t hidden = request.dispatch.hidden;
  const int64_t received = sum(forward.received.recv_count);
  const int64_t received_own = forward.received.recv_count.as<int32_t>()[request.rank];
  const int64_t pairs = sum(forward.expert_counts);
  const ConstTensorView& counts = forward.expert_counts;
  const int64_t touched = std::count_if(counts.as<int32_t>(), counts.as<int32_t>() + counts.num_values(),
                                        [](int32_t count) { return count > 0; });
  const SentRows sent = count_sent(request);
  const int64_t row = row_bytes(request.dispatch);
  const int64_t partial = partial_row_bytes(request.dispatch);
  const bool fp8 = request.dispatch.wire != WireFormat::bf16;

  LayerWork work;
  auto& stages = work.stages;
  // Logits in, ids and weights out.
  stages[static_cast<int>(Stage::routing)].bytes =
      num_tokens * (routing.num_experts + routing.num_zero_experts) * 4 + num_tokens * num_topk * 8;
  // Hidden rows, ids and weights in; a row out for every rank that owns experts of the token.
  stages[static_cast<int>(Stage::dispatch)] = {num_tokens * (2 * hidden + 8 * num_topk) + sent.all * row, 0, received * row,
                                             (received - received_own) * row};
  // Received ids in; slot of each pair and pair of each slot out, counts and offsets.
  stages[static_cast<int>(Stage::align)].bytes = received * num_topk * 8 + pairs * 4 + counts.num_values() * 8;
  stages[static_cast<int>(Stage::experts)] = from_cost(experts_cost(request.weights.experts, request.config.activation, touched,
                                                                  pairs, fp8 ? DType::fp8_e4m3 : DType::bf16));
  if (request.weights.shared.num_experts > 0)
    stages[static_cast<int>(Stage::shared_experts)] = from_cost(experts_cost(
        request.weights.shared, request.config.activation, num_tokens > 0 ? 1 : 0, num_tokens, DType::bf16));
  const StageWork& dispatch = stages[static_cast<int>(Stage::dispatch)];
  const StageWork back{(received + sent.all) * partial + num_tokens * 2 * hidden, 0, sent.all * partial,
                       (sent.all - sent.own) * partial};
  work.exchange = dispatch;
  work.exchange += back;
  work.exchange.bytes += received * 2 * hidden;
  // Experts' rows in, a partial sum per received row out; the partial sums that come back in, the output out.
  StageWork& combine = stages[static_cast<int>(Stage::combine)];
  combine = back;
  combine.bytes += pairs * 2 * hidden;
  combine.flops = 2 * pairs * hidden;
  return work;
}

SpeedOfLight speed_of_light(std::span<const StageWork> ranks, const Peaks& peaks) {
  StageWork all;
  for (const StageWork& each : ranks) all += each;
  SpeedOfLight limit;
  const auto raise = [&limit](double amount, double per_us, const char* bound) {
    if (per_us <= 0 || amount / per_us <= limit.us) return;
    limit = {amount / per_us, bound};
  };
  raise(static_cast<double>(all.bytes), peaks.copy_gbs * 1e3, "memory");
  raise(static_cast<double>(all.remote_bytes), peaks.exchange_gbs * 1e3, "link");
  raise(static_cast<double>(all.flops), std::max(peaks.bf16_tflops, peaks.f32_tflops) * 1e6, "matrix");
  return limit;
}

StageWork worst_rank(std::span<const StageWork> ranks) {
  StageWork worst;
  for (const StageWork& each : ranks)
    if (std::pair(each.bytes, each.flops) > std::pair(worst.bytes, worst.flops)) worst = each;
  return worst;
}

}  // namespace mixlane::bench
