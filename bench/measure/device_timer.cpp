#include "measure/device_timer.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "measure/clock.hpp"
#include "stats/stats.hpp"

namespace mixlane::bench {
namespace {

constexpr int kBatch = 8;              // samples between two waits of the host
constexpr double kTurnSeconds = 0.02;  // of one work before the next has its turn
constexpr double kClockSeconds = 0.05;
constexpr int64_t kColdBytes = int64_t{1600} << 20;  // what the fastest memory moves in kMinSampleUs

int64_t flush_bytes(Device device) { return 2 * std::max<int64_t>(gpu::properties(device.index).l2_bytes, 16 << 20); }

double seconds_since(int64_t begin_ns) { return static_cast<double>(now_ns() - begin_ns) * 1e-9; }

}  // namespace

std::string_view name(LaunchMode mode) { return mode == LaunchMode::graph ? "graph" : "eager"; }
std::string_view name(CacheState cache) { return cache == CacheState::cold ? "cold" : "hot"; }

int num_cold_sets(int64_t set_bytes) {
  return static_cast<int>(std::clamp<int64_t>(kColdBytes / std::max<int64_t>(set_bytes, 1), 1, DeviceTimer::kMaxCalls));
}

// ---------------------------------------------------------------------------------------------------------------------

DeviceTimer::DeviceTimer(Device device)
    : device_(device), stream_(device), flush_from_(device, flush_bytes(device)), flush_to_(device, flush_bytes(device)) {
  const gpu::DeviceGuard guard(device);
  events_.resize(2 * kBatch);
  for (const int64_t begin = now_ns(); seconds_since(begin) < kClockSeconds;) {
    flush_cache();
    gpu::synchronize(stream());
  }
}

// A write alone would leave all lines waiting to be written back, at the expense of the sample; a read none.
void DeviceTimer::flush_cache() const { gpu::copy(flush_to_.data(), flush_from_.data(), flush_to_.bytes(), stream()); }

PreparedWork DeviceTimer::prepare(DeviceWork work, const TimerOptions& options) {
  if (!work.call || work.num_sets < 1) fail(ErrorCode::internal, "device work with {} sets of data", work.num_sets);
  return PreparedWork(*this, std::move(work), options);
}

// ---------------------------------------------------------------------------------------------------------------------

PreparedWork::PreparedWork(DeviceTimer& timer, DeviceWork work, const TimerOptions& options)
    : timer_(&timer), work_(std::move(work)), options_(options) {
  const gpu::DeviceGuard guard(timer_->device());
  work_.call(timer_->stream(), 0);  // workspace is sized on a first call, which must not be captured
  gpu::synchronize(timer_->stream());
  const int most =
      options_.cache == CacheState::cold ? std::min(work_.num_sets, DeviceTimer::kMaxCalls) : DeviceTimer::kMaxCalls;
  set_calls(1);
  // What a sample lasts beside its calls makes the first guesses too small, never too large.
  for (;;) {
    const double us = std::min(measure_once(), measure_once());
    if (us >= options_.min_sample_us || calls_ >= most) return;
    constexpr double kAmple = 1.2;
    const double wanted = std::min(kAmple * options_.min_sample_us / us * calls_, static_cast<double>(most));
    set_calls(std::clamp(static_cast<int>(wanted), calls_ + 1, most));
  }
}

void PreparedWork::set_calls(int calls) {
  calls_ = calls;
  if (options_.mode == LaunchMode::eager) return;
  graph_ = gpu::Graph::capture(timer_->device(), [this](Stream stream) {
    for (int i = 0; i < calls_; ++i) work_.call(stream, options_.cache == CacheState::cold ? i : 0);
  });
}

void PreparedWork::enqueue() {
  const Stream stream = timer_->stream();
  if (options_.mode == LaunchMode::graph) return graph_.launch(stream);
  for (int i = 0; i < calls_; ++i) work_.call(stream, options_.cache == CacheState::cold ? i : 0);
}

// The whole of one sample, which is also a warm-up.
double PreparedWork::measure_once() {
  take(1);
  const double us = samples_us_.back() * calls_;
  samples_us_.clear();
  return us;
}

void PreparedWork::take(int count) {
  const gpu::DeviceGuard guard(timer_->device());
  const Stream stream = timer_->stream();
  const bool cold = options_.cache == CacheState::cold;
  for (int done = 0; done < count;) {
    const int batch = std::min(kBatch, count - done);
    if (!cold) enqueue();
    for (int i = 0; i < batch; ++i) {
      if (cold) timer_->flush_cache();
      timer_->events_[2 * i].record(stream);
      enqueue();
      timer_->events_[2 * i + 1].record(stream);
    }
    gpu::synchronize(stream);
    for (int i = 0; i < batch; ++i)
      samples_us_.push_back(gpu::Event::elapsed_us(timer_->events_[2 * i], timer_->events_[2 * i + 1]) / calls_);
    done += batch;
  }
}

// ---------------------------------------------------------------------------------------------------------------------

namespace {

struct Turn {
  PreparedWork* work;
  double spent_s = 0;
  double rel_half_width = 1;
  bool done = false;

  int num_samples() const { return static_cast<int>(work->samples_us().size()); }
};

// As many as the turn has time for, by what the work took so far.
int next_count(const Turn& turn, const SamplePlan& plan) {
  const int taken = turn.num_samples();
  if (taken == 0) return std::clamp(plan.min_samples, 1, kBatch);
  const double sample_s = std::max(turn.spent_s / taken, 1e-6);
  const int in_a_turn = std::clamp(static_cast<int>(kTurnSeconds / sample_s), 1, 8 * kBatch);
  return std::min(in_a_turn, std::max(1, plan.max_samples - taken));
}

void advance(Turn& turn, const SamplePlan& plan) {
  const int64_t begin = now_ns();
  turn.work->take(next_count(turn, plan));
  turn.spent_s += seconds_since(begin);
  const Statistic so_far = summarise(turn.work->samples_us(), plan.target);
  turn.rel_half_width = so_far.rel_half_width;
  const bool enough = turn.num_samples() >= plan.min_samples;
  const bool known = enough && so_far.converged && turn.spent_s >= plan.min_time_s;
  turn.done = known || turn.num_samples() >= plan.max_samples || (enough && turn.spent_s >= plan.max_time_s);
}

}  // namespace

void sample_in_turn(std::span<PreparedWork*> works, const SamplePlan& plan, const TimingProgress& progress) {
  std::vector<Turn> turns;
  for (PreparedWork* work : works) turns.push_back({work});
  for (bool going_on = !turns.empty(); going_on;) {
    going_on = false;
    int fewest = plan.max_samples;
    double widest = 0;
    for (Turn& turn : turns) {
      if (!turn.done) advance(turn, plan);
      going_on = going_on || !turn.done;
      fewest = std::min(fewest, turn.num_samples());
      widest = std::max(widest, turn.rel_half_width);
    }
    if (progress) progress(fewest, widest);
  }
}

}  // namespace mixlane::bench
