#include "exchange/cell.hpp"

#include <algorithm>
#include <set>

#include "core/error.hpp"
#include "exchange/overlap.hpp"
#include "exchange/table.hpp"
#include "exchange/timer.hpp"
#include "measure/clock.hpp"
#include "results/cells.hpp"
#include "stats/stats.hpp"

namespace mixlane::bench {
namespace {

// A way under one condition, with what is known of it.
struct Timed {
  std::string way;
  ExchangeWay* exchange = nullptr;
  std::unique_ptr<ExchangeRun> run;
  double wrong_received = 0, wrong_output = 0;
  double spent_s = 0;
  bool done = false;
};

class ExchangeCellRun {
 public:
  ExchangeCellRun(const ExchangeCellRequest& request, const std::vector<TimerOptions>& conditions,
                  std::vector<Record>& records, Console& console)
      : request_(request),
        conditions_(conditions),
        records_(records),
        console_(console),
        inputs_(shape_of(request), request.options.exchange.rows, request.cpu),
        gpus_(upload(inputs_)),
        stand_(inputs_.num_ranks()) {}

  void run();

 private:
  static ExchangeShape shape_of(const ExchangeCellRequest& request) {
    const BenchOptions& options = request.options;
    return {options.shape,
            request.tokens,
            request.workload,
            options.num_ranks,
            wire_format(options, request.format),
            combine_wire(options),
            options.capacity,
            options.seed,
            options.exchange.padded_to};
  }
  void describe_ranks();
  void run_case(const ExchangeCase& exchange_case, bool with_dispatch, bool with_combine);
  void leave_out(const std::string& way, const ExchangeCase& exchange_case, const Error& error);
  void check(Timed& timed, const TimerOptions& how);
  void sample(std::vector<Timed>& all, const TimerOptions& how);
  void overlap(Record& record, const Timed& timed, const ExchangeCase& exchange_case);
  void store(Record& record, const Timed& timed, const ExchangeCase& exchange_case, bool with_dispatch, bool with_combine);
  void add(Record& record, StageRecord row, const std::vector<double>& samples_us, const StageWork& work);
  std::string limits(const ExchangeCase& exchange_case) const;
  std::string dispatch_options(const ExchangeCase& exchange_case) const;
  std::string combine_options(const ExchangeCase& exchange_case) const;
  bool wants(std::string_view stage) const {
    const auto& stages = request_.options.stages;
    return std::find(stages.begin(), stages.end(), stage) != stages.end();
  }

  const ExchangeCellRequest& request_;
  const std::vector<TimerOptions>& conditions_;
  std::vector<Record>& records_;
  Console& console_;
  ExchangeInputs inputs_;
  std::vector<RankOnGpu> gpus_;
  ExchangeStand stand_;
  std::set<std::string> left_out_;
};

void ExchangeCellRun::run() {
  describe_ranks();
  const ExchangeOptions& options = request_.options.exchange;
  std::vector<DispatchInput> inputs = options.inputs;
  if (inputs_.config().wire == WireFormat::bf16) inputs = {DispatchInput::bf16};
  // Combine does not depend on dispatch's input, nor dispatch on combine's rows.
  for (const int limit : options.multiprocessors)
    for (size_t i = 0; i < inputs.size(); ++i)
      for (size_t r = 0; r < options.rows.size(); ++r) {
        const bool dispatch = r == 0 && wants("dispatch"), combine = i == 0 && wants("combine");
        if (dispatch || combine)
          run_case({.input = inputs[i], .rows = options.rows[r], .num_multiprocessors = limit}, dispatch, combine);
      }
}

void ExchangeCellRun::describe_ranks() {
  for (Record& record : records_) {
    record.expert_pairs = inputs_.expert_pairs();
    for (int r = 0; r < inputs_.num_ranks(); ++r) {
      const RankData& data = inputs_.rank(r);
      int64_t rows = 0;
      for (const int32_t count : data.recv_count) rows += count;
      record.rank_tokens.push_back(static_cast<int>(data.num_tokens));
      record.rank_rows.push_back(rows);
    }
  }
}

void ExchangeCellRun::run_case(const ExchangeCase& exchange_case, bool with_dispatch, bool with_combine) {
  std::vector<std::unique_ptr<ExchangeWay>> ways;
  std::vector<std::string> names;
  for (const std::string& way : request_.options.exchange.ways) {
    try {
      ways.push_back(make_way(way, {inputs_, gpus_, exchange_case, request_.options.deadline}));
      names.push_back(way);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::unsupported && error.code() != ErrorCode::out_of_memory) throw;
      leave_out(way, exchange_case, error);
    }
  }
  for (size_t c = 0; c < conditions_.size(); ++c) {
    std::vector<Timed> all;
    for (size_t w = 0; w < ways.size(); ++w) {
      Timed timed;
      timed.way = names[w];
      timed.exchange = ways[w].get();
      try {
        timed.run = std::make_unique<ExchangeRun>(stand_, *ways[w], conditions_[c]);
      } catch (const Error& error) {
        if (error.code() != ErrorCode::unsupported) throw;
        leave_out(names[w], exchange_case, error);
        continue;
      }
      check(timed, conditions_[c]);
      all.push_back(std::move(timed));
    }
    sample(all, conditions_[c]);
    for (const Timed& timed : all) {
      store(records_[c], timed, exchange_case, with_dispatch, with_combine);
      records_[c].window_bytes = std::max(records_[c].window_bytes, timed.exchange->symmetric_bytes());
      if (request_.options.exchange.overlap && conditions_[c].mode == LaunchMode::graph &&
          conditions_[c].cache == CacheState::hot && with_dispatch && with_combine)
        overlap(records_[c], timed, exchange_case);
    }
  }
}

// Said once per way and reason.
void ExchangeCellRun::leave_out(const std::string& way, const ExchangeCase& exchange_case, const Error& error) {
  if (!left_out_.insert(way + error.what()).second) return;
  console_.say(fmt::format("note: {} is left out at {} tokens, {} {}: {}", way, request_.tokens,
                           dispatch_options(exchange_case), combine_options(exchange_case), error.what()));
}

void ExchangeCellRun::check(Timed& timed, const TimerOptions& how) {
  const ExchangeRun::Errors errors = timed.run->check();
  timed.wrong_received = errors.received;
  timed.wrong_output = errors.output;
  if (timed.wrong_received <= 0 && timed.wrong_output <= timed.exchange->output_tolerance()) return;
  fail(
      ErrorCode::internal,
      "wrong output of {} and {} at {} tokens on {} ranks, {}, {}: {:.3g} of the received bytes, output {:.3g} off, allowed "
      "0 and {:.3g}, against dispatch.shm and combine.shm; it was not timed",
      timed.exchange->dispatch_id(), timed.exchange->combine_id(), request_.tokens, inputs_.num_ranks(),
      to_string(request_.workload), name(how.mode), timed.wrong_received, timed.wrong_output,
      timed.exchange->output_tolerance());
}

// In turn, so that all see the same moments of the machine.
void ExchangeCellRun::sample(std::vector<Timed>& all, const TimerOptions& how) {
  const SamplePlan plan = request_.options.sample_plan();
  for (bool going_on = true; going_on;) {
    going_on = false;
    for (Timed& timed : all) {
      if (timed.done) continue;
      const int64_t begin = now_ns();
      timed.run->take();
      timed.spent_s += static_cast<double>(now_ns() - begin) * 1e-9;
      const auto taken = static_cast<int>(timed.run->dispatch_us().size());
      const Statistic dispatch = summarise(timed.run->dispatch_us(), plan.target);
      const Statistic combine = summarise(timed.run->combine_us(), plan.target);
      const Statistic round = summarise(timed.run->round_us(), plan.target);
      const bool known = dispatch.converged && combine.converged && (round.converged || how.cache == CacheState::cold);
      const bool enough = taken >= plan.min_samples;
      timed.done = taken >= plan.max_samples || (enough && timed.spent_s >= plan.max_time_s) ||
                   (enough && known && timed.spent_s >= plan.min_time_s);
      going_on = going_on || !timed.done;
      console_.cell_state(fmt::format("{} {} {}  n={}", timed.way, name(how.mode), name(how.cache), taken));
    }
  }
}

// Of both stages.
std::string ExchangeCellRun::limits(const ExchangeCase& exchange_case) const {
  std::string text;
  if (exchange_case.num_multiprocessors > 0) text += fmt::format(" multiprocessors={}", exchange_case.num_multiprocessors);
  if (inputs_.shape().padded_to > 0) text += fmt::format(" padded_to={}", inputs_.shape().padded_to);
  return text;
}

std::string ExchangeCellRun::dispatch_options(const ExchangeCase& exchange_case) const {
  const WireFormat wire = inputs_.config().wire;
  std::string text = fmt::format("wire={}", name(wire));
  if (wire != WireFormat::bf16) text += fmt::format(" input={}", name(input_dtype(inputs_, exchange_case)));
  return text + limits(exchange_case);
}

std::string ExchangeCellRun::combine_options(const ExchangeCase& exchange_case) const {
  const std::string text = fmt::format("rows={} wire={}", name(exchange_case.rows), request_.options.combine_wire);
  return text + limits(exchange_case);
}

void ExchangeCellRun::add(Record& record, StageRecord row, const std::vector<double>& samples_us, const StageWork& work) {
  if (samples_us.empty() || find_row(record, row)) return;
  set_figures(row, samples_us, request_.options.target, {&work, 1}, request_.peaks);
  record.stages.push_back(std::move(row));
}

void ExchangeCellRun::store(Record& record, const Timed& timed, const ExchangeCase& exchange_case, bool with_dispatch,
                            bool with_combine) {
  int checked = 0;
  for (int r = 0; r < inputs_.num_ranks(); ++r) checked += static_cast<int>(inputs_.rank(r).num_tokens);
  const auto row = [&](std::string_view stage, const std::string& variant, const std::string& options, double error,
                       double tolerance) {
    StageRecord result;
    result.stage = stage;
    result.variant = variant;
    result.options = options;
    result.correctness = {true, checked, error, tolerance, "dispatch.shm and combine.shm"};
    return result;
  };
  const std::string sent = dispatch_options(exchange_case), summed = combine_options(exchange_case);
  const double tolerance = timed.exchange->output_tolerance();
  StageWork both = dispatch_work(inputs_, exchange_case);
  if (with_dispatch)
    add(record, row("dispatch", timed.exchange->dispatch_id(), sent, timed.wrong_received, 0), timed.run->dispatch_us(),
        both);
  const StageWork combined = combine_work(inputs_, exchange_case);
  if (with_combine)
    add(record, row("combine", timed.exchange->combine_id(), summed, timed.wrong_output, tolerance), timed.run->combine_us(),
        combined);
  both += combined;
  add(record, row("exchange", "exchange." + timed.way, sent + " " + summed, timed.wrong_output, tolerance),
      timed.run->round_us(), both);
  record.correctness.rel_error = std::max(record.correctness.rel_error, timed.wrong_output);
  record.correctness.tolerance = std::max(record.correctness.tolerance, tolerance);
  record.correctness.reference = "the CPU's variants";
}

void ExchangeCellRun::overlap(Record& record, const Timed& timed, const ExchangeCase& exchange_case) {
  constexpr int kSamples = 20;
  try {
    const OverlapTimes times = measure_overlap(stand_, *timed.exchange, exchange_case.num_multiprocessors, kSamples);
    const std::string options = dispatch_options(exchange_case) + " " + combine_options(exchange_case);
    const auto row = [&](const std::string& what, const std::vector<double>& samples_us) {
      StageRecord result;
      result.stage = "overlap";
      result.variant = what + "." + timed.way;
      result.options = options;
      result.correctness = {true, request_.tokens, 0, 0, "dispatch.shm and combine.shm"};
      add(record, result, samples_us, {});
    };
    row("compute", times.compute_us);
    row("exchange", times.exchange_us);
    row("both", times.both_us);
    console_.say(
        fmt::format("overlap {} {}: {:.0f} % of the exchange hidden", timed.way, options, 100 * times.hidden_share()));
  } catch (const Error& error) {
    if (error.code() != ErrorCode::unsupported) throw;
    console_.say(fmt::format("note: no overlap of {}: {}", timed.way, error.what()));
  }
}

}  // namespace

void run_exchange_cell(const ExchangeCellRequest& request, const std::vector<TimerOptions>& conditions,
                       std::vector<Record>& records, Console& console) {
  if (request.options.num_ranks > kMaxExchangeRanks)
    fail(ErrorCode::unsupported, "--ranks {}: on GPUs dispatch and combine take at most {}", request.options.num_ranks,
         kMaxExchangeRanks);
  ExchangeCellRun(request, conditions, records, console).run();
}

}  // namespace mixlane::bench
