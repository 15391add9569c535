#include "measure/sampler.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "measure/clock.hpp"
#include "stats/stats.hpp"

namespace mixlane::bench {
namespace {

constexpr int kMaxBatch = 64;
constexpr int kWarmUpBatch = 3;
constexpr double kBatchSeconds = 0.05;
static_assert(std::is_trivially_copyable_v<Stamps>);

}  // namespace

// Streams a buffer larger than the last cache, so that nothing of the layer is left in it.
class Sampler::CacheFlush {
 public:
  CacheFlush() : buffer_(static_cast<size_t>(std::max<int64_t>(sysconf(_SC_LEVEL3_CACHE_SIZE), 32 << 20)) / 8 * 5 / 4) {}
  void run() {
    for (uint64_t& word : buffer_) word += 1;
  }

 private:
  std::vector<uint64_t> buffer_;
};

Sampler::Sampler(Gate& gate, const SamplePlan& plan)
    : gate_(gate), plan_(plan), flush_(plan.cold ? std::make_unique<CacheFlush>() : nullptr) {}
Sampler::~Sampler() = default;

int64_t Sampler::mailbox_bytes() { return kMaxBatch * static_cast<int64_t>(sizeof(Stamps)); }

void Sampler::run_batch(int count, const SampleBody& body) {
  Stamps* own = reinterpret_cast<Stamps*>(gate_.mailbox(gate_.rank()).data());
  for (int i = 0; i < count; ++i) {
    if (flush_) flush_->run();
    Stamps stamps;
    stamps.gate_ns = gate_.pass();
    body(stamps);
    stamps.end_us = static_cast<double>(now_ns() - stamps.gate_ns) * 1e-3;
    own[i] = stamps;
  }
  gate_.pass();
}

void Sampler::collect(int count, SampleSet& set) const {
  for (int i = 0; i < count; ++i)
    for (int r = 0; r < set.num_ranks; ++r) {
      const Stamps* stamps = reinterpret_cast<const Stamps*>(gate_.mailbox(r).data());
      set.stamps.push_back(gate_.is_left_out(r) ? Stamps{} : stamps[i]);
    }
}

// Rank 0: how many samples come next; 0 = enough.
int Sampler::next_batch(const SampleSet& set, double elapsed_s, double batch_s, int batch, bool& converged) const {
  const int taken = set.num_samples();
  if (taken > 0) {
    converged = summarise(layer_samples(set), plan_.target).converged;
    if (taken >= plan_.min_samples && converged && elapsed_s >= plan_.min_time_s) return 0;
    if (taken >= plan_.max_samples) return 0;
    if (taken >= plan_.min_samples && elapsed_s >= plan_.max_time_s) return 0;
  }
  const double sample_s = std::max(batch_s / batch, 1e-7);
  return std::clamp(static_cast<int>(kBatchSeconds / sample_s), 1,
                    std::min(kMaxBatch, std::max(1, plan_.max_samples - taken)));
}

SampleSet Sampler::measure(const SampleBody& body, const SampleProgress& progress) {
  const bool leads = gate_.rank() == 0;
  SampleSet set;
  if (leads) set.num_ranks = gate_.num_ranks();
  int batch = kWarmUpBatch;
  int64_t start_ns = 0;
  for (bool warming_up = true; batch > 0; warming_up = false) {
    const int64_t batch_start_ns = now_ns();
    run_batch(batch, body);
    const int64_t batch_end_ns = now_ns();
    if (warming_up) start_ns = batch_end_ns;
    if (leads) {
      if (!warming_up) collect(batch, set);
      const double elapsed_s = static_cast<double>(batch_end_ns - start_ns) * 1e-9;
      gate_.set_word(
          next_batch(set, elapsed_s, static_cast<double>(batch_end_ns - batch_start_ns) * 1e-9, batch, set.converged));
      if (progress && !warming_up) {
        const Statistic so_far = summarise(layer_samples(set), plan_.target);
        progress(so_far.n, so_far.rel_half_width);
      }
    }
    gate_.pass();
    batch = static_cast<int>(gate_.word());
  }
  return set;
}

namespace {

template <class Value>
std::vector<double> max_over_ranks(const SampleSet& set, Value&& value) {
  std::vector<double> samples;
  samples.reserve(static_cast<size_t>(set.num_samples()));
  for (int i = 0; i < set.num_samples(); ++i) {
    double worst = 0;
    for (int r = 0; r < set.num_ranks; ++r) worst = std::max(worst, value(set.at(i, r)));
    samples.push_back(worst);
  }
  return samples;
}

template <class Value>
std::vector<double> medians_of_ranks(const SampleSet& set, Value&& value) {
  std::vector<double> medians;
  for (int r = 0; r < set.num_ranks; ++r) {
    std::vector<double> samples;
    for (int i = 0; i < set.num_samples(); ++i) samples.push_back(value(set.at(i, r)));
    medians.push_back(quantile(samples, 0.5));
  }
  return medians;
}

double duration_us(const Stamps& stamps, Stage stage) {
  const int s = static_cast<int>(stage);
  return stamps.stage_end_us[s] - stamps.begin_us[s];
}

}  // namespace

std::vector<double> layer_samples(const SampleSet& set) {
  return max_over_ranks(set, [](const Stamps& stamps) { return stamps.end_us; });
}

std::vector<double> stage_samples(const SampleSet& set, Stage stage) {
  return max_over_ranks(set, [stage](const Stamps& stamps) { return duration_us(stamps, stage); });
}

std::vector<double> rank_medians(const SampleSet& set) {
  return medians_of_ranks(set, [](const Stamps& stamps) { return stamps.end_us; });
}

std::vector<double> rank_medians(const SampleSet& set, Stage stage) {
  return medians_of_ranks(set, [stage](const Stamps& stamps) { return duration_us(stamps, stage); });
}

double wait_us(const SampleSet& set, Stage stage) {
  const int s = static_cast<int>(stage);
  std::vector<double> waits;
  for (int i = 0; i < set.num_samples(); ++i) {
    double last_begin = 0;
    for (int r = 0; r < set.num_ranks; ++r) last_begin = std::max(last_begin, set.at(i, r).begin_us[s]);
    int slowest = 0;
    for (int r = 1; r < set.num_ranks; ++r)
      if (duration_us(set.at(i, r), stage) > duration_us(set.at(i, slowest), stage)) slowest = r;
    const Stamps& stamps = set.at(i, slowest);
    waits.push_back(std::clamp(last_begin - stamps.begin_us[s], 0.0, duration_us(stamps, stage)));
  }
  return quantile(waits, 0.5);
}

}  // namespace mixlane::bench
