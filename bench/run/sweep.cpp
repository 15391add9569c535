#include "run/sweep.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/memory_budget.hpp"
#include "doctor/environment.hpp"
#include "doctor/peaks.hpp"
#include "measure/clock.hpp"
#include "report/report.hpp"
#include "run/cell.hpp"
#include "run/session.hpp"
#include "run/table.hpp"
#include "run/together.hpp"
#include "trace/chrome_trace.hpp"

namespace mixlane::bench {
namespace {

std::string size_text(int64_t bytes) {
  const double kib = static_cast<double>(bytes) / (1 << 10);
  if (kib < 1024) return fmt::format("{:.0f} KiB", kib);
  return kib < 1 << 20 ? fmt::format("{:.1f} MiB", kib / (1 << 10)) : fmt::format("{:.2f} GiB", kib / (1 << 20));
}

double seconds_since(int64_t begin_ns) { return static_cast<double>(now_ns() - begin_ns) * 1e-9; }

class Sweep {
 public:
  explicit Sweep(const BenchOptions& options);
  int run();

 private:
  void begin_session();
  void choose_stamp(bool& resumed);
  void greet(bool resumed);
  int cells_done() const;
  std::vector<std::pair<int, size_t>> cells_to_do(QuantFormat format) const;

  void run_format(QuantFormat format);
  void check_memory(const Rig& rig);
  void load(Rig& rig);
  void measure_peaks_once(ResultFile& file);
  std::unique_ptr<TokenSource> tokens_of(const Rig& rig, Dispatcher& dispatcher, int tokens, size_t workload) const;
  void run_one(Rig& rig, ResultFile& file, TraceWriter& traces, int tokens, size_t workload);
  void finish();

  bool leads() const { return comm_->rank() == 0; }

  const BenchOptions& options_;
  std::shared_ptr<Communicator> comm_;
  Context context_;
  Gate gate_;
  Console console_;
  std::unique_ptr<Recording> recording_;
  std::string stamp_;
  std::map<std::string, std::string> environment_;  // rank 0's
  std::vector<ResultFile> files_;                   // one per format; records on rank 0, on the others only what is done
  Peaks peaks_;
  SamplePlan plan_;
};

std::shared_ptr<Communicator> join_group(const BenchOptions& options) {
  auto comm = make_process_group(options.deadline);
  comm->set_deadline(options.deadline);
  return comm;
}

Sweep::Sweep(const BenchOptions& options)
    : options_(options),
      comm_(join_group(options)),
      context_({.device = {}, .num_threads = options.threads_per_rank}),
      gate_(comm_, cell_mailbox_bytes(options.shape), options.mask ? OnPeerTimeout::mask : OnPeerTimeout::fail),
      console_({.speaks = comm_->rank() == 0, .quiet = options.quiet, .text_on_stderr = options.json == "-"}),
      plan_(options.sample_plan()) {}

int Sweep::run() {
  comm_->require_equal("command line", options_.command);
  begin_session();
  if (options_.recorded())
    together(*comm_, [this] {
      recording_ = std::make_unique<Recording>(
          Recording::Request{options_.hidden, options_.logits, options_.shape.hidden,
                             options_.shape.routing.num_experts + options_.shape.routing.num_zero_experts, options_.seed});
    });
  const int total = static_cast<int>(options_.formats.size() * options_.tokens.size() * options_.workload_names().size());
  console_.begin_cells(cells_done(), total);
  for (const QuantFormat format : options_.formats) run_format(format);
  if (leads()) finish();
  return 0;
}

// --- What this run is, and what is done already ----------------------------------------------------------------------

void Sweep::choose_stamp(bool& resumed) {
  require_writable(options_.out);
  environment_ = capture_environment();
  environment_["threads_per_rank"] = fmt::format("{}", options_.threads_per_rank);
  environment_["launcher"] = launch_info().source;
  environment_["combine_wire"] = options_.combine_wire;
  environment_["wire"] = options_.wire;
  stamp_ = options_.fresh ? "" : interrupted_stamp(options_, environment_);
  resumed = !stamp_.empty();
  if (!resumed) stamp_ = unused_stamp(options_);
  for (const QuantFormat format : options_.formats) {
    files_.push_back(stored_or(options_, empty_result(options_, stamp_, format)));
    if (files_.back().records.empty()) files_.back().environment = environment_;
  }
  console_.log_to(log_path(options_, stamp_));
}

// Rank 0 looks at the files; the others learn which cells are done.
void Sweep::begin_session() {
  bool resumed = false;
  together(*comm_, [&] {
    if (leads()) choose_stamp(resumed);
  });
  nlohmann::json done = nlohmann::json::array();
  for (const ResultFile& file : files_) {
    nlohmann::json of_file = nlohmann::json::array();
    for (const Record& record : file.records) of_file.push_back({record.tokens, record.workload});
    done.push_back(std::move(of_file));
  }
  done = nlohmann::json::parse(comm_->all_gather(done.dump())[0]);
  if (leads()) return greet(resumed);
  for (size_t i = 0; i < options_.formats.size(); ++i) {
    files_.push_back(empty_result(options_, "", options_.formats[i]));
    for (const auto& cell : done[i]) {
      files_.back().records.emplace_back();
      files_.back().records.back().tokens = cell[0].get<int>();
      files_.back().records.back().workload = cell[1].get<std::string>();
    }
  }
}

void Sweep::greet(bool resumed) {
  const Model& shape = options_.shape;
  console_.say(fmt::format("{}: {} experts, top {}, hidden {}, intermediate {}{}; {} ranks x {} threads on {}", shape.name,
                           shape.routing.num_experts, shape.routing.num_topk, shape.hidden, shape.intermediate,
                           shape.num_shared_experts > 0 ? fmt::format(", {} shared", shape.num_shared_experts) : "",
                           options_.num_ranks, options_.threads_per_rank, options_.device));
  if (!shape.unverified.empty())
    console_.report(fmt::format("note: nobody has checked these fields of {}: {}; check them against its config.json",
                                shape.name, fmt::join(shape.unverified, ", ")));
  if (resumed)
    console_.report(
        fmt::format("going on with the interrupted sweep {}: {} cells are done; --fresh starts anew", stamp_, cells_done()));
}

int Sweep::cells_done() const {
  int done = 0;
  for (const ResultFile& file : files_) done += static_cast<int>(file.records.size());
  return done;
}

std::vector<std::pair<int, size_t>> Sweep::cells_to_do(QuantFormat format) const {
  const size_t index = std::find(options_.formats.begin(), options_.formats.end(), format) - options_.formats.begin();
  const std::vector<std::string> workloads = options_.workload_names();
  std::vector<std::pair<int, size_t>> cells;
  for (const int tokens : options_.tokens)
    for (size_t w = 0; w < workloads.size(); ++w)
      if (!find_record(files_[index], tokens, workloads[w])) cells.emplace_back(tokens, w);
  return cells;
}

// --- One quantisation --------------------------------------------------------------------------------------------------

void Sweep::run_format(QuantFormat format) {
  const auto cells = cells_to_do(format);
  if (cells.empty()) return;
  if (const std::vector<int> gone = gate_.left_out(); !gone.empty())
    fail(ErrorCode::peer_timeout, "rank {} is gone: {} needs new windows, which all ranks have to make; run it again",
         fmt::join(gone, ", "), name(format));
  ResultFile& file = files_[std::find(options_.formats.begin(), options_.formats.end(), format) - options_.formats.begin()];
  Rig rig(context_, comm_, options_, format);
  load(rig);
  measure_peaks_once(file);
  TraceWriter traces(options_.num_ranks, fmt::format("{} {} {}", file.model, file.quant, file.stamp));
  if (!file.records.empty() && leads()) traces.resume(trace_folder(options_, file));
  for (const auto& [tokens, workload] : cells) run_one(rig, file, traces, tokens, workload);
  if (!leads()) return;
  file.complete = true;
  write_result_file(file, result_path(options_.out, file));
}

void Sweep::check_memory(const Rig& rig) {
  const int64_t weights = rig.expected_weight_bytes();
  console_.say(fmt::format("quant {}: per rank {} of weights and {} of windows", name(rig.format()), size_text(weights),
                           size_text(rig.window_bytes())));
  const std::string shortage =
      memory_shortage(weights * comm_->num_ranks(), fmt::format("the weights of {} ranks", comm_->num_ranks()));
  if (!shortage.empty()) fail(ErrorCode::out_of_memory, "{}", shortage);
}

void Sweep::load(Rig& rig) {
  together(*comm_, [&] {
    if (leads()) check_memory(rig);
  });
  const int64_t begin_ns = now_ns();
  together(*comm_, [&] { rig.load(); });
  console_.say(
      fmt::format("weights {} in {:.1f} s", options_.checkpoint.empty() ? "made" : "read", seconds_since(begin_ns)));
}

// The peaks of the run that made the first records of a file are the file's.
void Sweep::measure_peaks_once(ResultFile& file) {
  if (options_.peak_time_s > 0 && peaks_.measured_at.empty())
    peaks_ = measure_peaks(*comm_, context_, {.seconds = options_.peak_time_s});
  if (file.records.empty()) file.peaks = peaks_;
  for (const std::string& skipped : file.peaks.skipped) console_.say(fmt::format("note: not measured: {}", skipped));
  console_.say(table_legend(file) + "\n");
}

std::unique_ptr<TokenSource> Sweep::tokens_of(const Rig& rig, Dispatcher& dispatcher, int tokens, size_t workload) const {
  if (recording_) return recording_->tokens(tokens, options_.num_ranks, rig.weights());
  WorkloadRequest request;
  request.workload = options_.workloads[workload];
  request.routing = rig.config().routing;
  request.expert_rank = dispatcher.config().expert_rank;
  request.num_ranks = options_.num_ranks;
  request.tokens = tokens;
  request.seed = options_.seed;
  return make_workload_tokens(request);
}

void Sweep::run_one(Rig& rig, ResultFile& file, TraceWriter& traces, int tokens, size_t workload) {
  const std::string workload_name = options_.workload_names()[workload];
  console_.begin_cell(fmt::format("{} tokens={} {}", name(rig.format()), tokens, workload_name));
  const std::unique_ptr<TokenSource> source = tokens_of(rig, rig.dispatcher(), tokens, workload);
  CellResult result = run_cell(rig, gate_, console_, {tokens, workload_name, *source, plan_, file.peaks});
  console_.end_cell();
  const Correctness& check = result.record.correctness;
  if (!check.passed) {
    if (!leads()) throw PeerFailed();
    fail(ErrorCode::internal,
         "wrong output at quant {}, tokens {}, {}: relative error {:.3g}, allowed {:.3g}, over {} tokens "
         "against {}; nothing was timed",
         file.quant, tokens, workload_name, check.rel_error, check.tolerance, check.checked_tokens, check.reference);
  }
  if (!leads()) return;
  if (const std::vector<int> gone = gate_.left_out(); !gone.empty())
    file.environment["masked_ranks"] = fmt::format("{}", fmt::join(gone, ","));
  file.records.push_back(std::move(result.record));
  write_result_file(file, result_path(options_.out, file));
  console_.say(stage_table(file, file.records.back()));
  if (options_.no_trace) return;
  TraceCell cell{workload_name, tokens, {}};
  for (int s = 0; s < kNumStages; ++s)
    cell.variants.push_back(resolved_variant(context_, rig.config(), rig.weights().weights, static_cast<Stage>(s)));
  traces.add(cell, result.samples);
  traces.write(trace_folder(options_, file));
}

void Sweep::finish() {
  for (const std::string& notice : context_.notices()) console_.report("note: " + notice);
  for (const ResultFile& file : files_) {
    console_.report(fmt::format("wrote {}", result_path(options_.out, file).string()));
    if (!options_.no_trace)
      console_.say(fmt::format("      {} (https://ui.perfetto.dev opens it)",
                               (trace_folder(options_, file) / "merged.json").string()));
  }
  console_.report(fmt::format("report {}", write_report(options_.out).string()));
  if (options_.json == "-")
    for (const ResultFile& file : files_) fmt::print("{}", to_text(file));
}

}  // namespace

int run_sweep(const BenchOptions& options) { return Sweep(options).run(); }

}  // namespace mixlane::bench
