#include "exchange/timer.hpp"

#include <algorithm>

#include "exchange/rank_threads.hpp"
#include "stats/stats.hpp"

namespace mixlane::bench {
namespace {

constexpr uint64_t kGateLimitNs = 10'000'000'000;
constexpr int kMarksPerRound = 4;
constexpr int kMinRounds = 5, kMaxRounds = 20;
constexpr double kReplayUs = 1500;
constexpr int kEmptyMarks = 64;

int64_t flush_bytes(Device device) { return 2 * std::max<int64_t>(gpu::properties(device.index).l2_bytes, 16 << 20); }

double us_between(const std::vector<uint64_t>& marks, int from, int to) {
  return static_cast<double>(static_cast<int64_t>(marks[static_cast<size_t>(to)] - marks[static_cast<size_t>(from)])) * 1e-3;
}

std::vector<uint64_t> fetch_marks(const ExchangeStand& stand, int rank) {
  std::vector<uint64_t> marks(ExchangeStand::kMaxMarks);
  gpu::copy(marks.data(), stand.marks(rank), ExchangeStand::kMaxMarks * 8, stand.stream(rank));
  gpu::synchronize(stand.stream(rank));
  return marks;
}

}  // namespace

// ---------------------------------------------------------------------------------------------------------------------

ExchangeStand::Rank::Rank(Device device)
    : stream(device),
      marks(device, kMaxMarks * 8),
      passes(device, 4),
      flush_from(device, flush_bytes(device)),
      flush_to(device, flush_bytes(device)) {}

ExchangeStand::ExchangeStand(int num_ranks) : ranks_(static_cast<size_t>(num_ranks)) {
  const auto members = make_thread_group(num_ranks);
  for_each_rank(num_ranks, [&](int rank) {
    const Device device = device_of_rank(gpu::kDeviceType, rank);
    const gpu::DeviceGuard guard(device);
    auto& mine = ranks_[static_cast<size_t>(rank)] = std::make_unique<Rank>(device);
    mine->words = members[static_cast<size_t>(rank)]->allocate(kMaxExchangeRanks * 4, "the benchmark's gate", device);
    // Kernels are loaded before any of them waits for a peer: loading may wait for running kernels.
    DeviceGate alone;
    alone.passes = mine->passes.as<uint32_t>();
    launch_gate(alone, mine->marks.as<uint64_t>(), mine->stream.get());
    launch_mark(mine->marks.as<uint64_t>(), mine->stream.get());
    flush(rank, mine->stream.get());
    gpu::synchronize(mine->stream.get());
    for (int r = 0; r < num_ranks; ++r) mine->gate.words[r] = reinterpret_cast<uint32_t*>(mine->words->part(r));
    mine->gate.passes = mine->passes.as<uint32_t>();
    mine->gate.rank = rank;
    mine->gate.num_ranks = num_ranks;
    mine->gate.limit_ns = kGateLimitNs;
  });
  measure_empty();
}

void ExchangeStand::flush(int rank, Stream stream) const {
  const Rank& mine = *ranks_[static_cast<size_t>(rank)];
  gpu::copy(mine.flush_to.data(), mine.flush_from.data(), mine.flush_to.bytes(), stream);
}

void ExchangeStand::measure_empty() {
  for (int rank = 0; rank < num_ranks(); ++rank) {
    const gpu::DeviceGuard guard(stream(rank).device);
    const gpu::Graph graph = gpu::Graph::capture(stream(rank).device, [&](Stream captured) {
      for (int i = 0; i < kEmptyMarks; ++i) launch_mark(marks(rank) + i, captured);
    });
    for (int i = 0; i < 3; ++i) graph.launch(stream(rank));
    const std::vector<uint64_t> seen = fetch_marks(*this, rank);
    std::vector<double> gaps;
    for (int i = 1; i < kEmptyMarks; ++i) gaps.push_back(us_between(seen, i - 1, i));
    empty_us_ = std::max(empty_us_, quantile(gaps, 0.5));
  }
}

// ---------------------------------------------------------------------------------------------------------------------

ExchangeRun::ExchangeRun(const ExchangeStand& stand, ExchangeWay& way, const TimerOptions& how)
    : stand_(stand), way_(way), how_(how), marked_(static_cast<size_t>(stand.num_ranks())), rounds_(marked_.size()) {
  // Workspace is sized and libraries make their connections in first calls, which must not be captured.
  for_each_rank(stand_.num_ranks(), [&](int rank) {
    const gpu::DeviceGuard guard(stand_.stream(rank).device);
    for (int i = 0; i < 2; ++i) {
      way_.dispatch(rank, stand_.stream(rank));
      way_.combine(rank, stand_.stream(rank));
    }
    gpu::synchronize(stand_.stream(rank));
  });
  capture();
  choose_rounds();
}

// Enough of them for a replay to last a while: its first round is not counted.
void ExchangeRun::choose_rounds() {
  play(true);
  read_marked();
  const double round_us = std::max(dispatch_us_.back() + combine_us_.back(), 1.0);
  dispatch_us_.clear();
  combine_us_.clear();
  num_rounds_ = std::clamp(static_cast<int>(kReplayUs / round_us), kMinRounds, kMaxRounds);
  capture();
}

// One after the other: making a graph may wait for kernels, which may wait for a rank whose thread is making one.
void ExchangeRun::capture() {
  if (how_.mode == LaunchMode::eager) return;
  for (int rank = 0; rank < stand_.num_ranks(); ++rank) {
    const Device device = stand_.stream(rank).device;
    const gpu::DeviceGuard guard(device);
    marked_[static_cast<size_t>(rank)] = gpu::Graph::capture(device, [&](Stream stream) { enqueue_marked(rank, stream); });
    if (how_.cache == CacheState::hot)
      rounds_[static_cast<size_t>(rank)] = gpu::Graph::capture(device, [&](Stream stream) { enqueue_rounds(rank, stream); });
  }
}

void ExchangeRun::enqueue_stage(int rank, Stream stream, bool dispatch, int mark) {
  uint64_t* const marks = stand_.marks(rank);
  if (how_.cache == CacheState::cold) {
    stand_.flush(rank, stream);
    launch_gate(stand_.gate(rank), marks + mark, stream);
  } else {
    launch_mark(marks + mark, stream);
  }
  if (dispatch)
    way_.dispatch(rank, stream);
  else
    way_.combine(rank, stream);
  launch_mark(marks + mark + 1, stream);
}

void ExchangeRun::enqueue_marked(int rank, Stream stream) {
  launch_gate(stand_.gate(rank), stand_.marks(rank), stream);
  for (int i = 0; i < num_rounds_; ++i) {
    enqueue_stage(rank, stream, true, kMarksPerRound * i);
    enqueue_stage(rank, stream, false, kMarksPerRound * i + 2);
  }
}

void ExchangeRun::enqueue_rounds(int rank, Stream stream) {
  // The first round is not counted.
  launch_gate(stand_.gate(rank), stand_.marks(rank), stream);
  for (int i = 0; i <= num_rounds_; ++i) {
    if (i == 1) launch_mark(stand_.marks(rank), stream);
    way_.dispatch(rank, stream);
    way_.combine(rank, stream);
  }
  launch_mark(stand_.marks(rank) + 1, stream);
}

void ExchangeRun::play(bool marked) {
  for_each_rank(stand_.num_ranks(), [&](int rank) {
    const Stream stream = stand_.stream(rank);
    const gpu::DeviceGuard guard(stream.device);
    if (how_.mode == LaunchMode::graph) {
      (marked ? marked_ : rounds_)[static_cast<size_t>(rank)].launch(stream);
    } else if (marked) {
      enqueue_marked(rank, stream);
    } else {
      enqueue_rounds(rank, stream);
    }
    gpu::synchronize(stream);
  });
}

void ExchangeRun::read_marked() {
  std::vector<double> dispatch_us(static_cast<size_t>(num_rounds_)), combine_us(dispatch_us.size());
  for (int rank = 0; rank < stand_.num_ranks(); ++rank) {
    const std::vector<uint64_t> marks = fetch_marks(stand_, rank);
    for (int i = 0; i < num_rounds_; ++i) {
      const int first = kMarksPerRound * i;
      const auto at = static_cast<size_t>(i);
      dispatch_us[at] = std::max(dispatch_us[at], us_between(marks, first, first + 1) - stand_.empty_us());
      combine_us[at] = std::max(combine_us[at], us_between(marks, first + 2, first + 3) - stand_.empty_us());
    }
  }
  dispatch_us_.insert(dispatch_us_.end(), dispatch_us.begin() + 1, dispatch_us.end());
  combine_us_.insert(combine_us_.end(), combine_us.begin() + 1, combine_us.end());
}

ExchangeRun::Errors ExchangeRun::check() {
  for_each_rank(stand_.num_ranks(), [&](int rank) {
    const gpu::DeviceGuard guard(stand_.stream(rank).device);
    way_.poison(rank, stand_.stream(rank));
    gpu::synchronize(stand_.stream(rank));
  });
  play(true);
  Errors worst;
  for (int rank = 0; rank < stand_.num_ranks(); ++rank) {
    worst.received = std::max(worst.received, way_.wrong_received(rank, stand_.stream(rank)));
    worst.output = std::max(worst.output, way_.wrong_output(rank, stand_.stream(rank)));
  }
  return worst;
}

void ExchangeRun::take() {
  play(true);
  read_marked();
  if (how_.cache == CacheState::cold) return;
  play(false);
  double slowest_us = 0;
  for (int rank = 0; rank < stand_.num_ranks(); ++rank)
    slowest_us = std::max(slowest_us, us_between(fetch_marks(stand_, rank), 0, 1));
  round_us_.push_back(slowest_us / num_rounds_);
}

}  // namespace mixlane::bench
