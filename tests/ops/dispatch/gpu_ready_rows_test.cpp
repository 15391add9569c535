// Rows that are read block by block while the dispatch is under way (mixlane/ready_rows.hpp).
#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "consume_rows.hpp"
#include "ops/dispatch/gpu_faults.hpp"
#include "support/gpu.hpp"
#include "support/rank_threads.hpp"

namespace mixlane {
namespace {

using namespace std::chrono_literals;
using test::Consumed;
using test::GpuCall;
using test::GpuRank;
using test::Inputs;
using test::make_all_inputs;
using test::make_inputs;
using test::Oracle;
using test::Rng;
using test::run_ranks;

class ReadyRowsGpu : public test::GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (!IsSkipped() && gpu::compute_capability(0) < 90) GTEST_SKIP() << "dispatch.throughput needs sm_90";
  }
};

DispatcherConfig early_rows_config() {
  DispatcherConfig config = test::small_config();
  config.max_tokens = 400;
  config.early_rows = true;
  return config;
}

// Where a consumer of one rank writes, and what it should have written.
class Consumer {
 public:
  explicit Consumer(GpuRank& gpu_rank)
      : gpu_rank_(gpu_rank),
        config_(gpu_rank.dispatcher().config()),
        num_ranks_(gpu_rank.dispatcher().num_ranks()),
        sums_(gpu_rank.stream().device, int64_t{4} * num_ranks_ * config_.capacity),
        consumed_(gpu_rank.stream().device, num_ranks_ * static_cast<int64_t>(sizeof(Consumed))) {}

  void clear() { gpu::fill(sums_.data(), 0, sums_.bytes(), gpu_rank_.stream()); }
  void launch(const ReceivedRows& received, Stream stream) {
    test::launch_consumer(received, sums_.as<uint32_t>(), consumed_.as<Consumed>(), stream);
  }
  std::vector<Consumed> fetch() {
    gpu::synchronize(gpu_rank_.stream());
    std::vector<Consumed> consumed(static_cast<size_t>(num_ranks_));
    gpu::copy(consumed.data(), consumed_.data(), consumed_.bytes(), gpu_rank_.stream());
    gpu::synchronize(gpu_rank_.stream());
    return consumed;
  }

  // Every row of every source in `sources` was read when it was there.
  void expect_all(const Oracle& oracle, uint32_t sources = ~0u) {
    const std::vector<Consumed> consumed = fetch();
    std::vector<uint32_t> sums(static_cast<size_t>(num_ranks_ * config_.capacity));
    gpu::copy(sums.data(), sums_.data(), sums_.bytes(), gpu_rank_.stream());
    gpu::synchronize(gpu_rank_.stream());
    for (int source = 0; source < num_ranks_; ++source) {
      if ((sources >> source & 1u) == 0) continue;
      const std::vector<int64_t> tokens = oracle.tokens(source, gpu_rank_.dispatcher().rank());
      const size_t sent = std::min(tokens.size(), static_cast<size_t>(config_.capacity));
      EXPECT_EQ(consumed[source].num_missed, 0u) << "source " << source;
      ASSERT_EQ(consumed[source].num_rows, sent) << "source " << source;
      for (size_t j = 0; j < sent; ++j)
        ASSERT_EQ(sums[source * config_.capacity + j], checksum(oracle.inputs[source], tokens[j]))
            << "row " << j << " of source " << source;
    }
  }

 private:
  uint32_t checksum(const Inputs& in, int64_t token) const {
    uint32_t sum = 0, index = 0;
    const auto add = [&](const void* from, int64_t bytes) {
      for (int64_t at = 0; at < bytes; at += 4) {
        uint32_t word;
        std::memcpy(&word, static_cast<const std::byte*>(from) + at, 4);
        sum += test::weighed(word, index++);
      }
    };
    add(&in.hidden[token * config_.hidden], int64_t{2} * config_.hidden);
    add(&in.ids[token * config_.num_topk], int64_t{4} * config_.num_topk);
    add(&in.weights[token * config_.num_topk], int64_t{4} * config_.num_topk);
    return sum;
  }

  GpuRank& gpu_rank_;
  DispatcherConfig config_;
  int num_ranks_;
  gpu::Buffer sums_;
  gpu::Buffer consumed_;
};

// Both halves with the consumer between, on the same stream.
ReceivedRows consume(GpuRank& gpu_rank, Consumer& consumer, const Inputs& inputs, const GpuCall& call) {
  gpu_rank.send(inputs, call);
  consumer.clear();
  Dispatcher& dispatcher = gpu_rank.dispatcher();
  const ReceivedRows received = dispatcher.dispatch_send(gpu_rank.dispatch_args(inputs.num_tokens, call), gpu_rank.stream());
  consumer.launch(received, gpu_rank.stream());
  dispatcher.dispatch_receive(gpu_rank.stream());
  return received;
}

// Peers dispatch by variants of their own; blocks of all of them are late at random.
TEST_F(ReadyRowsGpu, AreReadAsTheyCome) {
  const test::FaultScope fault("jitter_50");
  for (const int num_ranks : {1, 2, 3, 5})
    run_ranks(num_ranks, [&](auto comm) {
      GpuRank gpu_rank(comm, early_rows_config());
      Consumer consumer(gpu_rank);
      const int rank = comm->rank();
      comm->barrier();
      for (uint64_t seed = 0; seed < 12; ++seed) {
        const std::vector<Inputs> inputs = make_all_inputs(seed, early_rows_config(), num_ranks);
        const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
        ReceivedRows received;
        if ((seed + static_cast<uint64_t>(rank)) % 3 == 2) {
          received = gpu_rank.dispatch(inputs[rank], {.variant = "dispatch.latency"});
          EXPECT_FALSE(received.ready.given());
          test::expect_received(received, oracle, rank);
        } else {
          received = consume(gpu_rank, consumer, inputs[rank],
                             {.variant = "dispatch.throughput", .count_on_device = seed % 2 == 0});
          consumer.expect_all(oracle);
          test::expect_received(gpu_rank.fetch(received), oracle, rank);
        }
        if (seed % 4 == 3) continue;
        received = gpu_rank.dispatch(inputs[rank], {.variant = "dispatch.throughput"});
        EXPECT_EQ(gpu_rank.combine(received, oracle, true), oracle.output(rank, true));
      }
      EXPECT_TRUE(gpu_rank.take_status().ok());
    });
}

TEST_F(ReadyRowsGpu, InGraphsAndWithoutRoomForAll) {
  run_ranks(2, [](auto comm) {
    DispatcherConfig config = early_rows_config();
    config.capacity = 90;
    GpuRank gpu_rank(comm, config);
    Consumer consumer(gpu_rank);
    const int rank = comm->rank();
    const GpuCall call{.variant = "dispatch.throughput", .count_on_device = true};
    const gpu::Graph graph = gpu::Graph::capture(test::device_of_rank(rank), [&](Stream stream) {
      const ReceivedRows received = gpu_rank.dispatcher().dispatch_send(gpu_rank.dispatch_args(0, call), stream);
      consumer.launch(received, stream);
      gpu_rank.dispatcher().dispatch_receive(stream);
    });
    comm->barrier();
    Rng rng(4);
    for (const int num_tokens : {400, 0, 1, 33, 400, 90, 7}) {
      std::vector<Inputs> inputs;
      for (int r = 0; r < 2; ++r) inputs.push_back(make_inputs(rng, config, r == 0 ? num_tokens : 400 - num_tokens, true));
      const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
      gpu_rank.send(inputs[rank], call);
      consumer.clear();
      graph.launch(gpu_rank.stream());
      consumer.expect_all(oracle);
    }
    EXPECT_EQ(gpu_rank.take_status().code, ErrorCode::capacity_overflow);
  });
}

// Rank 1 is late with the second half of its rows; rank 0's consumer, beside its own sending, has the first ones by then.
TEST_F(ReadyRowsGpu, TheFirstAreReadBeforeTheLastAreSent) {
  const test::FaultScope fault("stall_50:dispatch:1:2");
  run_ranks(2, [](auto comm) {
    GpuRank gpu_rank(comm, early_rows_config());
    Consumer consumer(gpu_rank);
    const int rank = comm->rank();
    const gpu::DeviceGuard guard(test::device_of_rank(rank));
    const gpu::OwnedStream beside(test::device_of_rank(rank));
    gpu::Event before, consumed;
    comm->barrier();
    for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
      Rng rng(epoch);
      const std::vector<Inputs> inputs{make_inputs(rng, early_rows_config(), 400, false),
                                       make_inputs(rng, early_rows_config(), 400, false)};
      const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
      const GpuCall call{.variant = "dispatch.throughput"};
      gpu_rank.send(inputs[rank], call);
      consumer.clear();
      const Stream stream = gpu_rank.stream();
      before.record(stream);
      before.hold(beside.get());
      const ReceivedRows received = gpu_rank.dispatcher().dispatch_send(gpu_rank.dispatch_args(400, call), stream);
      consumer.launch(received, beside.get());
      consumed.record(beside.get());
      consumed.hold(stream);
      gpu_rank.dispatcher().dispatch_receive(stream);
      consumer.expect_all(oracle);
      const Consumed from_peer = consumer.fetch()[1 - rank];
      EXPECT_GT(from_peer.num_blocks, 1u);
      if (epoch == 2 && rank == 0) {
        EXPECT_GE(from_peer.last_ns - from_peer.first_ns, 40'000'000u);
      }
    }
    EXPECT_TRUE(gpu_rank.take_status().ok());
  });
}

// Of few tokens dispatch.latency cuts rows into parts for several blocks, every other one of which is late here.
TEST_F(ReadyRowsGpu, ARowIsAnnouncedWhenAllOfItHasCome) {
  const test::FaultScope fault("stall_50:dispatch:1:2");
  run_ranks(2, [](auto comm) {
    GpuRank gpu_rank(comm, early_rows_config());
    Consumer consumer(gpu_rank);
    const int rank = comm->rank();
    comm->barrier();
    for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
      Rng rng(epoch);
      const std::vector<Inputs> inputs{make_inputs(rng, early_rows_config(), 20, false),
                                       make_inputs(rng, early_rows_config(), 20, false)};
      const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
      if (rank == 1) {
        test::expect_received(gpu_rank.dispatch(inputs[rank], {.variant = "dispatch.latency"}), oracle, rank);
        continue;
      }
      consume(gpu_rank, consumer, inputs[rank], {.variant = "dispatch.throughput"});
      consumer.expect_all(oracle);
    }
    EXPECT_TRUE(gpu_rank.take_status().ok());
  });
}

// The consumer's wait ends at the deadline, dispatch_receive says who did not come, and the others go on without it.
TEST_F(ReadyRowsGpu, ARankThatNeverComes) {
  run_ranks(
      3,
      [](auto comm) {
        const DispatcherConfig config = test::masking(early_rows_config());
        GpuRank gpu_rank(comm, config);
        Consumer consumer(gpu_rank);
        const int rank = comm->rank();
        comm->barrier();
        if (rank == 2) {
          std::this_thread::sleep_for(2500ms);
          return;
        }
        test::play_without(gpu_rank, 2, 0, 3, [&](uint64_t seed, uint32_t masked) {
          Rng rng(seed);
          std::vector<Inputs> inputs;
          for (int r = 0; r < 3; ++r) inputs.push_back(make_inputs(rng, config, 70, false));
          const Oracle oracle{gpu_rank.dispatcher().config(), inputs, masked};
          consume(gpu_rank, consumer, inputs[rank], {.variant = "dispatch.throughput"});
          consumer.expect_all(oracle, 3u);
          EXPECT_EQ(consumer.fetch()[2].num_missed, 1u);
        });
      },
      400ms);
}

}  // namespace
}  // namespace mixlane
