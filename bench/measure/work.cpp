#include "measure/work.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ops/dispatch/op.hpp"
#include "ops/experts/op.hpp"
#include "stats/stats.hpp"

namespace mixlane::bench {
namespace {

// Of `num_pairs` rows on `num_touched` of the experts.
StageWork experts_work(const ExpertWeights& weights, const MoeLayerConfig& config, int64_t num_touched, int64_t num_pairs,
                       DType rows) {
  ExpertsArgs args;
  args.weights = weights;
  args.activation = config.activation;
  args.rows.dtype = rows;
  return work_of(experts_cost(args, num_touched, num_pairs));
}

}  // namespace

StageWork work_of(const Cost& cost) { return {.bytes = cost.bytes(), .flops = cost.flops, .fp8_flops = cost.fp8_flops}; }

StageWork work_of(const ExchangeCost& cost) {
  return {.bytes = cost.bytes, .logical_bytes = cost.logical_bytes, .remote_bytes = cost.remote_bytes};
}

StageWork& StageWork::operator+=(const StageWork& other) {
  bytes += other.bytes;
  flops += other.flops;
  fp8_flops += other.fp8_flops;
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
  stage(Stage::dispatch) = work_of(dispatch_cost(request.dispatch, rows, request.rank, num_tokens, DType::bf16));
  // Received ids in; the slot of each pair and the pair of each slot out, counts and offsets.
  stage(Stage::align).bytes = received * num_topk * 8 + pairs * 4 + static_cast<int64_t>(of_expert.size()) * 8;
  stage(Stage::experts) =
      experts_work(request.weights.experts, request.config, touched, pairs, fp8 ? DType::fp8_e4m3 : DType::bf16);
  if (request.weights.shared.num_experts > 0)
    stage(Stage::shared_experts) =
        experts_work(request.weights.shared, request.config, num_tokens > 0 ? 1 : 0, num_tokens, DType::bf16);
  const CombineShape of_pairs{.num_tokens = num_tokens, .num_rows = pairs};
  stage(Stage::combine) = work_of(combine_cost(request.dispatch, rows, request.rank, of_pairs));
  stage(Stage::combine).flops = 2 * pairs * request.dispatch.hidden;
  work.exchange = stage(Stage::dispatch);
  const CombineShape of_rows{.num_tokens = num_tokens, .num_rows = received};
  work.exchange += work_of(combine_cost(request.dispatch, rows, request.rank, of_rows));
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
  // In flops of bf16, of which fp8 is worth less where it has products of its own.
  const double bf16_tflops = std::max(peaks.bf16_tflops, peaks.f32_tflops);
  const double fp8_price = bf16_tflops > 0 && peaks.fp8_tflops > 0 ? bf16_tflops / peaks.fp8_tflops : 1;
  raise(static_cast<double>(all.flops - all.fp8_flops) + fp8_price * static_cast<double>(all.fp8_flops), bf16_tflops * 1e6,
        "matrix");
  return limit;
}

StageWork worst_rank(std::span<const StageWork> ranks) {
  StageWork worst;
  for (const StageWork& each : ranks)
    if (std::pair(each.bytes, each.flops) > std::pair(worst.bytes, worst.flops)) worst = each;
  return worst;
}

void set_figures(StageRecord& row, std::span<const double> samples_us, double target_rel_half_width,
                 std::span<const StageWork> ranks, const Peaks& peaks) {
  row.samples_us.clear();
  for (const double us : samples_us) row.samples_us.push_back(std::round(us * 1e3) * 1e-3);
  row.time = summarise(row.samples_us, target_rel_half_width);
  const StageWork worst = worst_rank(ranks);
  row.bytes = worst.bytes;
  row.flops = worst.flops;
  row.logical_bytes = worst.logical_bytes;
  row.remote_bytes = worst.remote_bytes;
  const SpeedOfLight limit = speed_of_light(ranks, peaks);
  row.sol_us = limit.us;
  row.bound = limit.bound;
  row.sol_share = row.time.median_us > 0 ? limit.us / row.time.median_us : 0;
}

}  // namespace mixlane::bench
