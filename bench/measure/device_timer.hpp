// Device time of work on one stream of a GPU: the clock of stage benchmarks and of tuning. In builds with a GPU backend.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "gpu/runtime.hpp"
#include "measure/sampler.hpp"

namespace mixlane::bench {

enum class LaunchMode : uint8_t { eager, graph };
enum class CacheState : uint8_t { hot, cold };
std::string_view name(LaunchMode mode);
std::string_view name(CacheState cache);

// One piece of work in num_sets equal copies, each with inputs and outputs of its own.
struct DeviceWork {
  // Enqueues one call on the data of `set`, 0 <= set < num_sets; nothing else, and without waiting for the device. Also
  // called while a graph is captured. Its memory must outlive the PreparedWork.
  std::function<void(Stream stream, int set)> call;
  int num_sets = 1;
};

// Sets that make a cold sample last long enough at any memory rate, where one has `set_bytes`; all of them together stay
// below 1.7 GB unless one alone is larger.
int num_cold_sets(int64_t set_bytes);

inline constexpr double kMinSampleUs = 400;  // far above the resolution of events (0.5 us)

struct TimerOptions {
  LaunchMode mode = LaunchMode::graph;
  CacheState cache = CacheState::hot;
  double min_sample_us = kMinSampleUs;
};

class DeviceTimer;

// Work that is warmed up and ready to be sampled, now and again, in turn with others of the same timer.
class PreparedWork {
 public:
  // Appends `count` samples.
  void take(int count);
  const std::vector<double>& samples_us() const { return samples_us_; }
  int calls_per_sample() const { return calls_; }
  const TimerOptions& options() const { return options_; }

 private:
  friend class DeviceTimer;
  PreparedWork(DeviceTimer& timer, DeviceWork work, const TimerOptions& options);
  void set_calls(int calls);
  void enqueue();
  double measure_once();

  DeviceTimer* timer_;
  DeviceWork work_;
  TimerOptions options_;
  int calls_ = 1;
  gpu::Graph graph_;
  std::vector<double> samples_us_;
};

// What a sample is: the device's time from an event before `calls_per_sample` consecutive calls on one stream to an event
// behind them, divided by their number, in us.
//   graph   the calls are one captured graph, replayed once per sample
//   eager   the host enqueues each call; where it is slower than the device, that is what the sample shows
//   hot     all calls work on set 0, and an untimed round of them comes right before the sample
//   cold    each call of a sample has a set of its own (as far as there are sets: they bound the number of calls), and a
//           copy of twice the L2 cache comes right before the sample, outside of it. Inputs come from memory and outputs go
//           to lines that are not cached; half of the lines that they displace wait to be written back, as behind a usual
//           predecessor. Code, kernel parameters and workspace that the calls share stay cached.
// The number of calls grows until a sample lasts min_sample_us or it reaches kMaxCalls; the start of a graph (4 us on an
// H200) is part of the sample. What lies before the sample keeps the device busy while the host enqueues it, so that no
// sample holds the start of an idle device. Calls depend on each other by stream order, programmatic overlap included where
// kernels have it. Nothing is subtracted: a sample holds the launch or graph-node cost of its calls, whose size Peaks tells
// (launch_us, graph_node_us).
class DeviceTimer {
 public:
  static constexpr int kMaxCalls = 128;

  // Keeps the device busy for a moment first, until its clocks have risen. Throws unsupported where there is no such device.
  explicit DeviceTimer(Device device);

  // Runs the work once eagerly, chooses the number of calls, captures and warms up. Whatever `call` throws passes through.
  PreparedWork prepare(DeviceWork work, const TimerOptions& options = {});

  Device device() const { return device_; }
  Stream stream() const { return stream_.get(); }
  // Enqueues the copy that leaves nothing of earlier work in L2.
  void flush_cache() const;

 private:
  friend class PreparedWork;
  Device device_;
  gpu::OwnedStream stream_;
  gpu::Buffer flush_from_, flush_to_;
  std::vector<gpu::Event> events_;
};

// Told now and then: the fewest samples that any of the works has, and the widest relative half width.
using TimingProgress = std::function<void(int num_samples, double rel_half_width)>;

// Samples all works in turn, a few samples of each at a time, until every median is known as well as the plan asks for, or
// its time is up: plan.min_time_s and max_time_s are per work. Their samples show the same moments of the machine, so they
// compare. plan.cold is not looked at.
void sample_in_turn(std::span<PreparedWork*> works, const SamplePlan& plan, const TimingProgress& progress = {});

}  // namespace mixlane::bench
