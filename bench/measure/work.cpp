#include "measure/work.hpp"

#include <algorithm>
#include <numeric>

#include "ops/dispatch/op.hpp"
#include "ops/experts/op.hpp"

namespace mixlane::bench {
namespace {

StageWork from_cost(const Cost& cost) { return {cost.bytes(), cost.flops, 0, 0}; }

StageWork from_cost(const ExchangeCost& cost) { return {cost.bytes, 0, cost.logical_bytes, cost.remote_bytes}; }

// Of `num_pairs` rows on `num_touched` of the experts.
StageWork experts_work(const ExpertWeights& weights, const MoeLayerConfig& config, int64_t num_touched, int64_t num_pairs,
                       DType rows) {
  ExpertsArgs args;
  args.weights = weights;
  args.activation = config.activation;
  args.rows.dtype = rows;
  return from_cost(experts_cost(args, num_touched, num_pairs));
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
  const DispatchCounts& rows = counts(forward.received.handle);
  const int64_t num_tokens = forward.topk_ids.shape[0];
  const int64_t num_topk = routing.num_topk;
  const int64_t received = std::accumulate(rows.received.begin(), rows.received.end(), int64_t{0});
  const std::span<const int32_t> of_expert(forward.expert_counts.as<int32_t>(),
                                           static_cast<size_t>(forward.expert_counts.num_values()));
  const int64_t pairs = std::accumulate(of_expert.begin(), of_expert.end(), int64_t{0});
  const int64_t touched = std::count_if(of_expert.begin(), of_expert.end(), [](int32_t count) { return count > 0; });
  const bool fp8 = request.dispatch.wire != WireFormat::bf16;

  LayerWork work;
  const auto stage = [&work](Stage which) -> StageWork& { return work.stages[static_cast<int>(which)]; };
  // Logits in, ids and weights out.
  stage(Stage::routing).bytes = num_tokens * ((routing.num_experts + routing.num_zero_experts) * int64_t{4} + num_topk * 8);
  stage(Stage::dispatch) = from_cost(dispatch_cost(request.dispatch, rows, request.rank, num_tokens, DType::bf16));
  // Received ids in; the slot of each pair and the pair of each slot out, counts and offsets.
  stage(Stage::align).bytes = received * num_topk * 8 + pairs * 4 + static_cast<int64_t>(of_expert.size()) * 8;
  stage(Stage::experts) =
      experts_work(request.weights.experts, request.config, touched, pairs, fp8 ? DType::fp8_e4m3 : DType::bf16);
  if (request.weights.shared.num_experts > 0)
    stage(Stage::shared_experts) =
        experts_work(request.weights.shared, request.config, num_tokens > 0 ? 1 : 0, num_tokens, DType::bf16);
  const CombineShape of_pairs{.num_tokens = num_tokens, .num_rows = pairs};
  stage(Stage::combine) = from_cost(combine_cost(request.dispatch, rows, request.rank, of_pairs));
  stage(Stage::combine).flops = 2 * pairs * request.dispatch.hidden;
  work.exchange = stage(Stage::dispatch);
  const CombineShape of_rows{.num_tokens = num_tokens, .num_rows = received};
  work.exchange += from_cost(combine_cost(request.dispatch, rows, request.rank, of_rows));
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
  raise(static_cast<double>(all.bytes), std::max(peaks.copy_gbs, peaks.read_gbs) * 1e3, "memory");
  raise(static_cast<double>(all.remote_bytes), std::max(peaks.exchange_gbs, peaks.peer_write_gbs) * 1e3, "link");
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
