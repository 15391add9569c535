#include "exchange/overlap.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "doctor/gpu_kernels.hpp"
#include "exchange/rank_threads.hpp"
#include "stats/stats.hpp"

namespace mixlane::bench {
namespace {

constexpr int kTrialProducts = 2000;
constexpr int kLaunches = 8;  // of products: kernels of a layer, between which others find room
constexpr double kComputeShare = 1.5;
constexpr int kWarmUps = 3;

void launch_products(int num_products, int num_multiprocessors, const gpu::Buffer& sink, Stream stream) {
  if constexpr (kHasTensorCoreKernel)
    launch_tensor_cores(DType::bf16, num_products, num_multiprocessors, sink.as<float>(), stream);
}

enum class Work : uint8_t { compute, exchange, both };

class Overlap {
 public:
  Overlap(const ExchangeStand& stand, ExchangeWay& way, int limit) : stand_(stand), way_(way), limit_(limit) {
    for (int rank = 0; rank < stand.num_ranks(); ++rank) {
      const Device device = stand.stream(rank).device;
      const gpu::DeviceGuard guard(device);
      sides_.emplace_back(device);
      events_.emplace_back();
      events_.emplace_back();
      sinks_.emplace_back(device, 4096 * 4);
      launch_products(1, num_multiprocessors(rank), sinks_.back(), stand.stream(rank));
      gpu::synchronize(stand.stream(rank));
    }
    if (gpu::num_devices() < stand.num_ranks())
      fail(ErrorCode::unsupported, "overlap is measured with a GPU per rank; {} ranks have {}", stand.num_ranks(),
           gpu::num_devices());
  }

  std::vector<double> sample(Work work, int num_samples) {
    std::vector<gpu::Graph> graphs;
    for (int rank = 0; rank < stand_.num_ranks(); ++rank) {
      const Device device = stand_.stream(rank).device;
      const gpu::DeviceGuard guard(device);
      graphs.push_back(gpu::Graph::capture(device, [&](Stream stream) { enqueue(work, rank, stream); }));
    }
    std::vector<double> samples;
    for (int i = -kWarmUps; i < num_samples; ++i) {
      const double us = play(graphs);
      if (i >= 0) samples.push_back(us);
    }
    return samples;
  }

  // A launch takes time of its own, which two trials tell from that of its products.
  void choose_products(double compute_us) {
    constexpr int kFew = kTrialProducts / 4;
    const auto trial_us = [&](int num_products) {
      num_products_ = num_products;
      return quantile(sample(Work::compute, 5), 0.5);
    };
    const double few_us = trial_us(kFew), product_us = (trial_us(kTrialProducts) - few_us) / (kTrialProducts - kFew);
    num_products_ = std::max(kFew + static_cast<int>((compute_us - few_us) / product_us), kLaunches);
  }

 private:
  int num_multiprocessors(int rank) const { return gpu::num_multiprocessors(stand_.stream(rank).device.index); }

  // As many products in all on fewer multiprocessors, if some are left to the exchange.
  void compute(int rank, Stream stream, bool alone) {
    const int all = num_multiprocessors(rank), used = alone ? all : std::max(all - limit_, 1);
    const auto each = static_cast<int>(int64_t{num_products_} * all / used / kLaunches);
    for (int i = 0; i < kLaunches; ++i) launch_products(std::max(each, 1), used, sinks_[static_cast<size_t>(rank)], stream);
  }

  void exchange(int rank, Stream stream) {
    way_.dispatch(rank, stream);
    way_.combine(rank, stream);
  }

  void enqueue(Work work, int rank, Stream stream) {
    launch_gate(stand_.gate(rank), stand_.marks(rank), stream);
    if (work == Work::compute) compute(rank, stream, true);
    if (work == Work::exchange) exchange(rank, stream);
    if (work == Work::both) {
      gpu::Event& fork = events_[static_cast<size_t>(2 * rank)];
      gpu::Event& join = events_[static_cast<size_t>(2 * rank + 1)];
      const Stream side = sides_[static_cast<size_t>(rank)].get();
      fork.record(stream);
      fork.hold(side);
      compute(rank, stream, false);
      exchange(rank, side);
      join.record(side);
      join.hold(stream);
    }
    launch_mark(stand_.marks(rank) + 1, stream);
  }

  double play(const std::vector<gpu::Graph>& graphs) {
    std::vector<double> us(graphs.size());
    for_each_rank(stand_.num_ranks(), [&](int rank) {
      const Stream stream = stand_.stream(rank);
      const gpu::DeviceGuard guard(stream.device);
      graphs[static_cast<size_t>(rank)].launch(stream);
      uint64_t marks[2] = {};
      gpu::synchronize(stream);
      gpu::copy(marks, stand_.marks(rank), sizeof(marks), stream);
      gpu::synchronize(stream);
      us[static_cast<size_t>(rank)] = static_cast<double>(marks[1] - marks[0]) * 1e-3;
    });
    return *std::max_element(us.begin(), us.end());
  }

  const ExchangeStand& stand_;
  ExchangeWay& way_;
  int limit_;
  int num_products_ = kTrialProducts;
  std::vector<gpu::OwnedStream> sides_;
  std::vector<gpu::Event> events_;
  std::vector<gpu::Buffer> sinks_;
};

}  // namespace

double OverlapTimes::hidden_share() const {
  const double compute = quantile(compute_us, 0.5), exchange = quantile(exchange_us, 0.5), both = quantile(both_us, 0.5);
  return exchange > 0 ? (compute + exchange - both) / exchange : 0;
}

OverlapTimes measure_overlap(const ExchangeStand& stand, ExchangeWay& way, int num_multiprocessors, int num_samples) {
  if (!kHasTensorCoreKernel) fail(ErrorCode::unsupported, "overlap is measured with matrix products of sm_90");
  Overlap overlap(stand, way, num_multiprocessors);
  OverlapTimes times;
  times.exchange_us = overlap.sample(Work::exchange, num_samples);
  overlap.choose_products(kComputeShare * quantile(times.exchange_us, 0.5));
  times.compute_us = overlap.sample(Work::compute, num_samples);
  times.both_us = overlap.sample(Work::both, num_samples);
  return times;
}

}  // namespace mixlane::bench
