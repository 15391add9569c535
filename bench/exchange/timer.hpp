// Device time of exchanges: all ranks at work at once, each stage between two notes of its own device's clock.
#pragma once

#include "exchange/device_work.hpp"
#include "exchange/way.hpp"
#include "measure/device_timer.hpp"

namespace mixlane::bench {

// What ranks need to be timed, for all ways in turn.
class ExchangeStand {
 public:
  explicit ExchangeStand(int num_ranks);

  int num_ranks() const { return static_cast<int>(ranks_.size()); }
  Stream stream(int rank) const { return ranks_[static_cast<size_t>(rank)]->stream.get(); }
  uint64_t* marks(int rank) const { return ranks_[static_cast<size_t>(rank)]->marks.as<uint64_t>(); }
  const DeviceGate& gate(int rank) const { return ranks_[static_cast<size_t>(rank)]->gate; }
  // Leaves nothing of earlier work in the L2 cache of the rank's GPU.
  void flush(int rank, Stream stream) const;
  // The time between two marks with nothing between, of the slowest rank, in us.
  double empty_us() const { return empty_us_; }

  static constexpr int kMaxMarks = 256;

 private:
  struct Rank {
    explicit Rank(Device device);
    gpu::OwnedStream stream;
    gpu::Buffer marks, passes, flush_from, flush_to;
    std::shared_ptr<SymmetricMemory> words;
    DeviceGate gate;
  };
  void measure_empty();

  std::vector<std::unique_ptr<Rank>> ranks_;
  double empty_us_ = 0;
};

// One way under one condition, ready to be sampled again and again. What a sample is: one stage's time on the slowest rank
// in one of the rounds of dispatch and combine that a replay (graph), or a burst of calls by one host thread per rank
// (eager), holds; the ranks begin it together at a gate on the devices. A stage's time is from the note of the clock before
// it to the one behind it, less empty_us(). hot: rounds follow each other at once. cold: all L2 caches are flushed before
// each stage, and a gate follows. A round's time is that of rounds without notes between, all of them over their number.
class ExchangeRun {
 public:
  ExchangeRun(const ExchangeStand& stand, ExchangeWay& way, const TimerOptions& how);

  // Every rank's outputs become no result; then one replay or burst of rounds with notes, whose results are compared with
  // the CPU's. The worst rank's.
  struct Errors {
    double received = 0;  // share of the bytes
    double output = 0;
  };
  Errors check();
  // Appends samples of one replay of each kind.
  void take();
  int num_rounds() const { return num_rounds_; }
  const std::vector<double>& dispatch_us() const { return dispatch_us_; }
  const std::vector<double>& combine_us() const { return combine_us_; }
  // Empty if cold.
  const std::vector<double>& round_us() const { return round_us_; }

 private:
  void capture();
  void choose_rounds();
  void enqueue_stage(int rank, Stream stream, bool dispatch, int mark);
  void enqueue_marked(int rank, Stream stream);
  void enqueue_rounds(int rank, Stream stream);
  void play(bool marked);
  void read_marked();

  const ExchangeStand& stand_;
  ExchangeWay& way_;
  TimerOptions how_;
  int num_rounds_ = 2;
  std::vector<gpu::Graph> marked_, rounds_;  // per rank
  std::vector<double> dispatch_us_, combine_us_, round_us_;
};

}  // namespace mixlane::bench
