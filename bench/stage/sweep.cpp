#include "stage/sweep.hpp"

#include <algorithm>

#include "core/env.hpp"
#include "core/error.hpp"
#include "core/format.hpp"
#include "doctor/environment.hpp"
#include "doctor/gpu_peaks.hpp"
#include "exchange/table.hpp"
#include "report/report.hpp"
#include "run/console.hpp"
#include "run/session.hpp"
#include "stage/cell.hpp"
#include "stage/checkpoint_experts.hpp"
#include "stage/device.hpp"
#include "stage/table.hpp"

namespace mixlane::bench {
namespace {

class StageSweep {
 public:
  explicit StageSweep(const BenchOptions& options)
      : options_(options),
        console_({.speaks = true, .quiet = options.quiet, .text_on_stderr = options.json == "-"}),
        cpu_({.device = {}, .num_threads = options.threads_per_rank}),
        context_({.device = options.chosen_device}),
        timer_(options.chosen_device) {}

  int run();

 private:
  void begin_session();
  void greet(bool resumed);
  void open_profiler();
  bool is_done(const ResultFile& file, int tokens, const std::string& workload) const;
  void run_format(QuantFormat format, ResultFile& file);
  std::shared_ptr<PlacedExperts> load_experts(QuantFormat format, ResultFile& file);
  void run_one(QuantFormat format, ResultFile& file, int tokens, const Workload& workload,
               std::shared_ptr<PlacedExperts> experts);
  void finish();

  const BenchOptions& options_;
  Console console_;
  Context cpu_;
  Context context_;
  DeviceTimer timer_;
  std::unique_ptr<KernelProfiler> profiler_;
  std::string stamp_;
  std::vector<ResultFile> files_;  // one per format
};

int StageSweep::run() {
  begin_session();
  open_profiler();
  const size_t cells = options_.formats.size() * options_.tokens.size() * options_.workloads.size();
  int done = 0;
  for (const ResultFile& file : files_)
    for (const int tokens : options_.tokens)
      for (const Workload& workload : options_.workloads) done += is_done(file, tokens, to_string(workload));
  console_.begin_cells(done, static_cast<int>(cells));
  for (size_t f = 0; f < files_.size(); ++f) run_format(options_.formats[f], files_[f]);
  finish();
  return 0;
}

void StageSweep::begin_session() {
  require_writable(options_.out);
  std::map<std::string, std::string> environment = capture_environment();
  add_gpu_environment(options_.chosen_device, environment);
  stamp_ = options_.fresh ? "" : interrupted_stamp(options_, environment);
  const bool resumed = !stamp_.empty();
  if (!resumed) stamp_ = unused_stamp(options_);
  Peaks peaks;
  std::vector<Device> devices{options_.chosen_device};
  if (has_exchange(options_.stages)) {
    devices.clear();
    for (int i = 0; i < std::min(options_.num_ranks, num_gpus()); ++i) devices.push_back({options_.chosen_device.type, i});
  }
  if (options_.peak_time_s > 0) peaks = measure_gpu_peaks(devices, {.seconds = options_.peak_time_s});
  for (const QuantFormat format : options_.formats) {
    files_.push_back(stored_or(options_, empty_result(options_, stamp_, format)));
    if (!files_.back().records.empty()) continue;
    files_.back().environment = environment;
    files_.back().peaks = peaks;
  }
  console_.log_to(log_path(options_, stamp_));
  greet(resumed);
}

void StageSweep::greet(bool resumed) {
  const Model& shape = options_.shape;
  const auto& environment = files_.front().environment;
  console_.say(fmt::format("{}: {} experts, top {}, hidden {}; {} alone on {}:{}, {} with {} multiprocessors", shape.name,
                           shape.routing.num_experts, shape.routing.num_topk, shape.hidden, fmt::join(options_.stages, ", "),
                           name(options_.chosen_device.type), options_.chosen_device.index, environment.at("gpu"),
                           environment.at("gpu_multiprocessors")));
  if (!shape.unverified.empty())
    console_.report(fmt::format("note: nobody has checked these fields of {}: {}; check them against its config.json",
                                shape.name, fmt::join(shape.unverified, ", ")));
  if (resumed) console_.report(fmt::format("going on with the interrupted sweep {}; --fresh starts anew", stamp_));
  console_.say(stages_alone_legend(files_.front()) + "\n");
}

// What keeps kernels from being profiled is said once; the sweep goes on without.
void StageSweep::open_profiler() {
  if (!options_.kernel_times) return;
  profiler_ = std::make_unique<KernelProfiler>(Env::read());
  if (profiler_->missing().empty()) return;
  console_.warn(fmt::format("no kernel times: {}", profiler_->missing()));
  profiler_.reset();
}

bool StageSweep::is_done(const ResultFile& file, int tokens, const std::string& workload) const {
  for (const LaunchMode mode : options_.modes)
    for (const CacheState cache : options_.caches)
      if (std::none_of(file.records.begin(), file.records.end(), [&](const Record& record) {
            return record.tokens == tokens && record.workload == workload && record.mode == name(mode) &&
                   record.cache == name(cache);
          }))
        return false;
  return true;
}

std::shared_ptr<PlacedExperts> StageSweep::load_experts(QuantFormat format, ResultFile& file) {
  const CheckpointSource source{options_.checkpoint, options_.checkpoint_layer, options_.shape, format,
                                options_.shape.routing.num_experts / options_.num_ranks};
  auto experts = std::make_shared<CheckpointExperts>(cpu_, context_, source);
  const std::string text = load_text(source, experts->figures());
  console_.report(text);
  file.environment["weights"] = fmt::format("{}: {}", options_.checkpoint.string(), text);
  return experts;
}

void StageSweep::run_format(QuantFormat format, ResultFile& file) {
  std::shared_ptr<PlacedExperts> experts;  // random ones without
  for (const int tokens : options_.tokens)
    for (const Workload& workload : options_.workloads) {
      if (is_done(file, tokens, to_string(workload))) continue;
      if (!options_.checkpoint.empty() && !experts) experts = load_experts(format, file);
      run_one(format, file, tokens, workload, experts);
    }
  file.complete = true;
  write_result_file(file, result_path(options_.out, file));
}

void StageSweep::run_one(QuantFormat format, ResultFile& file, int tokens, const Workload& workload,
                         std::shared_ptr<PlacedExperts> experts) {
  console_.begin_cell(fmt::format("{} tokens={} {}", name(format), tokens, to_string(workload)));
  StageInputs inputs({options_.shape, format, tokens, workload, options_.num_ranks, options_.seed}, cpu_);
  std::vector<Record> records =
      run_stage_cell({options_, inputs, context_, timer_, file.peaks, profiler_.get(), std::move(experts)}, console_);
  console_.end_cell();
  console_.say(stages_alone_table(file, records));
  console_.say(exchange_table(file, records));
  for (Record& record : records)
    if (!record.stages.empty()) file.records.push_back(std::move(record));
  write_result_file(file, result_path(options_.out, file));
}

void StageSweep::finish() {
  for (const std::string& notice : context_.notices()) console_.report("note: " + notice);
  for (const ResultFile& file : files_) console_.report(fmt::format("wrote {}", result_path(options_.out, file).string()));
  console_.report(fmt::format("report {}", write_report(options_.out).string()));
  if (options_.json == "-")
    for (const ResultFile& file : files_) fmt::print("{}", to_text(file));
}

}  // namespace

std::vector<std::string> stage_names() {
  std::vector<std::string> names;
  for (const StageKind& kind : stage_kinds()) names.emplace_back(kind.name);
  return names;
}

int run_stage_sweep(const BenchOptions& options) { return StageSweep(options).run(); }

}  // namespace mixlane::bench
