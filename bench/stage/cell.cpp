#include "stage/cell.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "exchange/cell.hpp"
#include "measure/work.hpp"
#include "run/variants.hpp"

namespace mixlane::bench {
namespace {

constexpr int kProfiledCalls = 8;

class StageCellRun {
 public:
  StageCellRun(const StageCellRequest& request, Console& console) : request_(request), console_(console) {
    for (const LaunchMode mode : request.options.modes)
      for (const CacheState cache : request.options.caches) conditions_.push_back({mode, cache});
  }

  std::vector<Record> run();

 private:
  void begin_records();
  void run_kind(const StageKind& kind);
  void run_exchange();
  void run_stage(std::string_view stage_name, DeviceStage& stage);
  std::vector<std::string> variants_for(std::string_view stage_name, const DeviceStage& stage);
  Correctness check(std::string_view stage_name, DeviceStage& stage, const std::string& variant, const TimerOptions& how);
  std::vector<KernelTime> profile(DeviceStage& stage, const std::string& variant, CacheState cache);
  PreparedWork prepare(DeviceStage& stage, const std::string& variant, const TimerOptions& how) {
    return request_.timer.prepare(
        {[&stage, variant](Stream stream, int set) { stage.enqueue(variant, stream, set); }, stage.num_sets()}, how);
  }
  StageRecord make_record(std::string_view stage_name, const DeviceStage& stage, const std::string& variant,
                          const PreparedWork& work) const;

  const StageCellRequest& request_;
  Console& console_;
  std::vector<TimerOptions> conditions_;
  std::vector<Record> records_;
};

std::vector<Record> StageCellRun::run() {
  begin_records();
  for (const StageKind& kind : stage_kinds())
    if (const auto& chosen = request_.options.stages; std::find(chosen.begin(), chosen.end(), kind.name) != chosen.end())
      run_kind(kind);
  if (has_exchange(request_.options.stages)) run_exchange();
  return std::move(records_);
}

void StageCellRun::begin_records() {
  for (const TimerOptions& how : conditions_) {
    Record record;
    record.tokens = request_.inputs.cell().tokens;
    record.workload = to_string(request_.inputs.cell().workload);
    record.mode = name(how.mode);
    record.cache = name(how.cache);
    record.expert_pairs = request_.inputs.expert_pairs();
    record.correctness = {true, record.tokens, 0, 0, ""};
    records_.push_back(std::move(record));
  }
}

void StageCellRun::run_kind(const StageKind& kind) {
  const bool cold = std::any_of(conditions_.begin(), conditions_.end(),
                                [](const TimerOptions& how) { return how.cache == CacheState::cold; });
  std::vector<std::unique_ptr<DeviceStage>> stages;
  try {
    stages = kind.make({request_.context, request_.inputs, request_.options.stage_options, cold, request_.experts});
  } catch (const Error& error) {
    if (error.code() != ErrorCode::unsupported && error.code() != ErrorCode::out_of_memory) throw;
    return console_.say(
        fmt::format("note: {} is left out at {} tokens: {}", kind.name, request_.inputs.cell().tokens, error.what()));
  }
  for (const auto& stage : stages) run_stage(kind.name, *stage);
}

void StageCellRun::run_exchange() {
  const StageCell& cell = request_.inputs.cell();
  try {
    run_exchange_cell({request_.options, cell.format, cell.tokens, cell.workload, request_.inputs.cpu(), request_.peaks},
                      conditions_, records_, console_);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::unsupported && error.code() != ErrorCode::out_of_memory) throw;
    console_.say(fmt::format("note: dispatch and combine are left out at {} tokens: {}", cell.tokens, error.what()));
  }
}

// The chosen ids that take the stage's arguments, "auto" as what it stands for.
std::vector<std::string> StageCellRun::variants_for(std::string_view stage_name, const DeviceStage& stage) {
  const auto found = request_.options.variant_lists.find(std::string(stage_name));
  const std::vector<std::string> chosen =
      found == request_.options.variant_lists.end() ? std::vector<std::string>{"auto"} : found->second;
  std::vector<std::string> ids;
  for (const std::string& choice : chosen) {
    const std::string id = choice == "auto" ? stage.automatic() : choice;
    if (std::find(ids.begin(), ids.end(), id) != ids.end()) continue;
    if (const std::string reason = stage.refusal(id); !reason.empty()) {
      console_.note(fmt::format("{} tokens, {} {}: {}", request_.inputs.cell().tokens, stage_name, stage.options(), reason));
      continue;
    }
    ids.push_back(id);
  }
  return ids;
}

Correctness StageCellRun::check(std::string_view stage_name, DeviceStage& stage, const std::string& variant,
                                const TimerOptions& how) {
  const Stream stream = request_.timer.stream();
  const int set = how.cache == CacheState::cold ? stage.num_sets() - 1 : 0;
  stage.poison(stream, set);
  if (how.mode == LaunchMode::graph) {
    gpu::Graph::capture(stream.device, [&](Stream captured) { stage.enqueue(variant, captured, set); }).launch(stream);
    gpu::synchronize(stream);
  } else {
    stage.enqueue(variant, stream, set);
  }
  Correctness result = stage.verify(stream, set);
  if (!result.passed)
    fail(ErrorCode::internal,
         "wrong output of {} ({} {}) at {} tokens, {}, {}: error {:.3g}, allowed {:.3g}, against {}; it was not timed",
         variant, stage_name, stage.options(), request_.inputs.cell().tokens, to_string(request_.inputs.cell().workload),
         name(how.mode), result.rel_error, result.tolerance, result.reference);
  return result;
}

StageRecord StageCellRun::make_record(std::string_view stage_name, const DeviceStage& stage, const std::string& variant,
                                      const PreparedWork& work) const {
  StageRecord record;
  record.stage = stage_name;
  record.variant = variant;
  record.options = stage.options();
  record.automatic = variant == stage.automatic();
  record.calls_per_sample = work.calls_per_sample();
  const StageWork needed = stage.work();
  set_figures(record, work.samples_us(), request_.options.target, {&needed, 1}, request_.peaks);
  return record;
}

// Eager calls after one that warms up, as hot or cold as the samples; a graph's kernels are the same.
std::vector<KernelTime> StageCellRun::profile(DeviceStage& stage, const std::string& variant, CacheState cache) {
  const Stream stream = request_.timer.stream();
  stage.enqueue(variant, stream, 0);
  gpu::synchronize(stream);
  request_.profiler->start();
  for (int i = 0; i < kProfiledCalls; ++i) {
    if (cache == CacheState::cold) request_.timer.flush_cache();
    stage.enqueue(variant, stream, 0);
  }
  gpu::synchronize(stream);
  std::vector<std::string> known;
  for (const StageVariants& each : lone_stage_variants())
    for (const VariantInfo& info : each.variants) known.emplace_back(info.id);
  return attribute_kernels(request_.profiler->stop(), known, kProfiledCalls);
}

void StageCellRun::run_stage(std::string_view stage_name, DeviceStage& stage) {
  const std::vector<std::string> ids = variants_for(stage_name, stage);
  for (size_t c = 0; c < conditions_.size(); ++c) {
    const TimerOptions& how = conditions_[c];
    std::vector<Correctness> checks;
    for (const std::string& id : ids) checks.push_back(check(stage_name, stage, id, how));
    std::vector<PreparedWork> works;
    for (const std::string& id : ids) works.push_back(prepare(stage, id, how));
    std::vector<PreparedWork*> in_turn;
    for (PreparedWork& work : works) in_turn.push_back(&work);
    sample_in_turn(in_turn, request_.options.sample_plan(), [&](int n, double noise) {
      console_.cell_state(
          fmt::format("{} {} {}  n={}  noise {:.1f} %", stage_name, name(how.mode), name(how.cache), n, noise * 100));
    });
    for (size_t v = 0; v < ids.size(); ++v) {
      StageRecord record = make_record(stage_name, stage, ids[v], works[v]);
      record.correctness = checks[v];
      records_[c].correctness.rel_error = std::max(records_[c].correctness.rel_error, checks[v].rel_error);
      records_[c].correctness.tolerance = std::max(records_[c].correctness.tolerance, checks[v].tolerance);
      records_[c].correctness.reference = "the CPU's variants";
      if (request_.profiler) record.kernels = profile(stage, ids[v], how.cache);
      records_[c].stages.push_back(std::move(record));
    }
  }
}

}  // namespace

std::vector<Record> run_stage_cell(const StageCellRequest& request, Console& console) {
  return StageCellRun(request, console).run();
}

}  // namespace mixlane::bench
