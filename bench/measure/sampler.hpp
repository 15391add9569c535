// Taking samples in step on all ranks, until the median is known well enough.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <vector>

#include "measure/gate.hpp"
#include "mixlane/layer.hpp"
#include "results/record.hpp"

namespace mixlane::bench {

inline constexpr int kNumStages = 6;  // of enum Stage

// One rank's stamps of one sample, in us since the gate opened. A stage that did not run has begin = end = 0.
struct Stamps {
  int64_t gate_ns = 0;  // when it opened
  double end_us = 0;    // of the whole
  std::array<double, kNumStages> begin_us{};
  std::array<double, kNumStages> stage_end_us{};
};

struct SamplePlan {
  double min_time_s = 0.3;
  double max_time_s = 3;
  double target = 0.02;  // half the 95 % interval of the median, relative to it
  int min_samples = 10;
  int max_samples = 5000;
  bool cold = false;  // caches flushed before each sample
};

// Complete on rank 0 only; the other ranks' is empty.
struct SampleSet {
  int num_ranks = 0;
  std::vector<Stamps> stamps;  // [sample][rank]
  bool converged = false;
  int num_samples() const { return num_ranks == 0 ? 0 : static_cast<int>(stamps.size()) / num_ranks; }
  const Stamps& at(int sample, int rank) const { return stamps[static_cast<size_t>(sample) * num_ranks + rank]; }
};

// The work of one sample. Fills the stages' stamps where it has stages; `end_us` is the sampler's.
using SampleBody = std::function<void(Stamps&)>;
// Told now and then, on rank 0: samples so far and the relative half width.
using SampleProgress = std::function<void(int num_samples, double rel_half_width)>;

class Sampler {
 public:
  Sampler(Gate& gate, const SamplePlan& plan);
  ~Sampler();

  // Collective. Warms up, then samples in batches; after each batch rank 0 decides for all whether it goes on. At least
  // plan.min_samples, at most plan.max_time_s or max_samples.
  SampleSet measure(const SampleBody& body, const SampleProgress& progress = {});

  // Mailbox bytes that it needs of the gate.
  static int64_t mailbox_bytes();

 private:
  class CacheFlush;
  void run_batch(int count, const SampleBody& body);
  void collect(int count, SampleSet& set) const;
  int next_batch(const SampleSet& set, double elapsed_s, double batch_s, int batch, bool& converged) const;

  Gate& gate_;
  SamplePlan plan_;
  std::unique_ptr<CacheFlush> flush_;
};

// Of each sample the maximum over the ranks.
std::vector<double> layer_samples(const SampleSet& set);
std::vector<double> stage_samples(const SampleSet& set, Stage stage);
// Per rank the median.
std::vector<double> rank_medians(const SampleSet& set);
std::vector<double> rank_medians(const SampleSet& set, Stage stage);
// Median over samples of the part of a stage that its slowest rank spent before the last rank began the same stage: no
// exchange can end earlier than that.
double wait_us(const SampleSet& set, Stage stage);

}  // namespace mixlane::bench
