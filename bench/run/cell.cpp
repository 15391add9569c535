#include "run/cell.hpp"

#include <algorithm>
#include <numeric>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "measure/clock.hpp"
#include "measure/correctness.hpp"
#include "measure/work.hpp"

namespace mixlane::bench {
namespace {

constexpr double kExchangeSeconds = 1.0;  // most time for dispatch and combine alone

// One rank's inputs and output.
class Batch {
 public:
  Batch(Context& context, const TokenSource& source, int rank, int64_t hidden, int64_t columns)
      : num_tokens_(source.rank_tokens()[rank]),
        hidden_size_(hidden),
        columns_(columns),
        hidden_(static_cast<size_t>(num_tokens_ * hidden)),
        logits_(static_cast<size_t>(num_tokens_ * columns)),
        output_(static_cast<size_t>(num_tokens_ * hidden)) {
    parallel_ranges(context.num_threads(), num_tokens_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        source.fill_hidden(rank, t, {hidden_.data() + t * hidden, static_cast<size_t>(hidden)});
        source.fill_logits(rank, t, {logits_.data() + t * columns, static_cast<size_t>(columns)});
      }
    });
  }

  ConstTensorView hidden() const { return {hidden_.data(), DType::bf16, {num_tokens_, hidden_size_}}; }
  ConstTensorView logits() const { return {logits_.data(), DType::f32, {num_tokens_, columns_}}; }
  TensorView output() { return {output_.data(), DType::bf16, {num_tokens_, hidden_size_}}; }

 private:
  int64_t num_tokens_, hidden_size_, columns_;
  std::vector<uint16_t> hidden_;
  std::vector<float> logits_;
  std::vector<uint16_t> output_;
};

class Cell {
 public:
  Cell(Rig& rig, Gate& gate, Console& console, const CellRequest& request)
      : rig_(rig),
        gate_(gate),
        console_(console),
        request_(request),
        routing_(rig.config().routing),
        batch_(rig.context(), request.source, gate.rank(), rig.config().dispatch.hidden,
               routing_.num_experts + routing_.num_zero_experts) {}

  CellResult run();

 private:
  void forward();
  void exchange(const ForwardView& routed);
  void handle(const Status& status);
  void gather_realised(Record& record);
  void gather_work();
  SampleSet time_layer();
  SampleSet time_exchange();
  void add_stages(const SampleSet& set, Record& record) const;
  void add_exchange(const SampleSet& set, Record& record) const;
  void add_layer(const SampleSet& set, Record& record) const;
  StageRecord make_record(std::string stage, std::string variant, std::span<const double> samples,
                          std::span<const StageWork> work) const;
  std::string resolved_id(Stage stage) const;

  Rig& rig_;
  Gate& gate_;
  Console& console_;
  const CellRequest& request_;
  const RoutingConfig& routing_;
  Batch batch_;
  std::vector<LayerWork> work_;  // per rank that takes part
};

// A rank that is gone is left out everywhere with --mask; without it, the call has thrown.
void Cell::handle(const Status& status) {
  if (status.code != ErrorCode::peer_timeout) return throw_if_failed(status);
  const std::vector<int> masked = rig_.dispatcher().masked_ranks();
  if (std::any_of(masked.begin(), masked.end(), [this](int rank) { return !gate_.is_left_out(rank); }))
    console_.warn(fmt::format("{}; going on without it (--mask)", describe(status)));
  gate_.leave_out(masked);
}

void Cell::forward() {
  Status status;
  rig_.layer().forward({.hidden = batch_.hidden(), .logits = batch_.logits(), .output = batch_.output(), .status = &status});
  handle(status);
}

CellResult Cell::run() {
  CellResult result;
  Record& record = result.record;
  record.tokens = request_.tokens;
  record.workload = request_.workload;
  record.cache = request_.plan.cold ? "cold" : "hot";
  record.rank_tokens = request_.source.rank_tokens();
  record.window_bytes = rig_.window_bytes();

  gate_.pass();
  forward();
  record.correctness = check_layer(rig_.context(), gate_,
                                   {.config = rig_.config(),
                                    .weights = rig_.weights(),
                                    .tokens = request_.source,
                                    .expert_map = rig_.dispatcher().expert_map(),
                                    .output = batch_.output()});
  gather_realised(record);
  if (!record.correctness.passed) return result;
  gather_work();
  result.samples = time_layer();
  const SampleSet exchanges = time_exchange();
  if (gate_.rank() != 0) return result;
  add_stages(result.samples, record);
  add_exchange(exchanges, record);
  add_layer(result.samples, record);
  return result;
}

void Cell::gather_realised(Record& record) {
  const ForwardView& view = rig_.layer().last_forward();
  std::vector<int64_t> own(static_cast<size_t>(routing_.num_experts) + 2);
  for (int64_t p = 0; p < view.topk_ids.num_values(); ++p)
    if (const int32_t id = view.topk_ids.as<int32_t>()[p]; id >= 0) ++own[id];
  int64_t& rows = own[routing_.num_experts];
  for (int64_t r = 0; r < view.received.recv_count.num_values(); ++r) rows += view.received.recv_count.as<int32_t>()[r];
  own.back() = rig_.weights().owned_bytes;
  record.expert_pairs.assign(routing_.num_experts, 0);
  for (const auto& each : gate_.all_gather(std::span<const int64_t>(own))) {
    record.rank_rows.push_back(each.empty() ? 0 : each[routing_.num_experts]);
    if (each.empty()) continue;
    for (int e = 0; e < routing_.num_experts; ++e) record.expert_pairs[e] += each[e];
    record.weight_bytes = std::max(record.weight_bytes, each.back());
  }
}

void Cell::gather_work() {
  const LayerWork own = layer_work({.config = rig_.config(),
                                    .weights = rig_.weights().weights,
                                    .dispatch = rig_.dispatcher().config(),
                                    .forward = rig_.layer().last_forward(),
                                    .rank = gate_.rank(),
                                    .num_ranks = gate_.num_ranks()});
  for (const auto& each : gate_.all_gather(std::span<const LayerWork>(&own, 1)))
    work_.insert(work_.end(), each.begin(), each.end());
}

SampleSet Cell::time_layer() {
  Stamps* current = nullptr;
  rig_.layer().set_stage_hook([&current](Stage stage, bool begins, Stream) {
    if (!current) return;
    const double us = static_cast<double>(now_ns() - current->gate_ns) * 1e-3;
    (begins ? current->begin_us : current->stage_end_us)[static_cast<int>(stage)] = us;
  });
  Sampler sampler(gate_, request_.plan);
  SampleSet set = sampler.measure(
      [&](Stamps& stamps) {
        current = &stamps;
        forward();
      },
      [&](int n, double noise) { console_.cell_state(fmt::format("n={}  noise {:.1f} %", n, noise * 100)); });
  rig_.layer().set_stage_hook({});
  return set;
}

// Dispatch and combine with nothing between them: rows come back as they went.
SampleSet Cell::time_exchange() {
  if (rig_.config().dispatch.wire != WireFormat::bf16) return {};  // combine takes no fp8 rows
  SamplePlan plan = request_.plan;
  plan.max_time_s = std::min(plan.max_time_s, kExchangeSeconds);
  plan.min_time_s = std::min(plan.min_time_s, plan.max_time_s);
  const ForwardView routed = rig_.layer().last_forward();
  Dispatcher& dispatcher = rig_.dispatcher();
  Sampler sampler(gate_, plan);
  return sampler.measure([&](Stamps&) {
    Status status;
    const ReceivedRows received = dispatcher.dispatch({.hidden = batch_.hidden(),
                                                       .topk_ids = routed.topk_ids,
                                                       .topk_weights = routed.topk_weights,
                                                       .status = &status,
                                                       .variant = rig_.config().dispatch_variant});
    handle(status);
    dispatcher.combine({.handle = received.handle,
                        .reduced_rows = received.rows,
                        .output = batch_.output(),
                        .status = &status,
                        .variant = rig_.config().combine_variant});
    handle(status);
  });
}

StageRecord Cell::make_record(std::string stage, std::string variant, std::span<const double> samples,
                              std::span<const StageWork> work) const {
  StageRecord record;
  record.stage = std::move(stage);
  record.variant = std::move(variant);
  set_figures(record, samples, request_.plan.target, work, request_.peaks);
  return record;
}

void Cell::add_stages(const SampleSet& set, Record& record) const {
  for (int s = 0; s < kNumStages; ++s) {
    const auto stage = static_cast<Stage>(s);
    const std::vector<double> samples = stage_samples(set, stage);
    if (std::all_of(samples.begin(), samples.end(), [](double us) { return us == 0; })) continue;
    std::vector<StageWork> work;
    for (const LayerWork& rank : work_) work.push_back(rank.stages[s]);
    StageRecord entry = make_record(std::string(name(stage)), resolved_id(stage), samples, work);
    entry.rank_median_us = rank_medians(set, stage);
    if (stage == Stage::dispatch || stage == Stage::combine) entry.wait_us = wait_us(set, stage);
    record.stages.push_back(std::move(entry));
  }
}

void Cell::add_layer(const SampleSet& set, Record& record) const {
  std::vector<StageWork> work(work_.size());
  for (size_t r = 0; r < work_.size(); ++r)
    for (const StageWork& stage : work_[r].stages) work[r] += stage;
  record.stages.push_back(make_record("layer", "", layer_samples(set), work));
  record.stages.back().rank_median_us = rank_medians(set);
}

void Cell::add_exchange(const SampleSet& set, Record& record) const {
  if (set.num_samples() == 0) return;
  std::vector<StageWork> work;
  for (const LayerWork& rank : work_) work.push_back(rank.exchange);
  record.stages.push_back(make_record("dispatch+combine", "", layer_samples(set), work));
  record.stages.back().rank_median_us = rank_medians(set);
}

std::string Cell::resolved_id(Stage stage) const {
  return resolved_variant(rig_.context(), rig_.config(), rig_.weights().weights, stage);
}

}  // namespace

CellResult run_cell(Rig& rig, Gate& gate, Console& console, const CellRequest& request) {
  return Cell(rig, gate, console, request).run();
}

int64_t cell_mailbox_bytes(const Model& shape) {
  const int64_t histogram = (shape.routing.num_experts + 2) * static_cast<int64_t>(sizeof(int64_t));
  return std::max(
      {histogram, static_cast<int64_t>(sizeof(LayerWork)), check_mailbox_bytes(shape.hidden), Sampler::mailbox_bytes()});
}

}  // namespace mixlane::bench
