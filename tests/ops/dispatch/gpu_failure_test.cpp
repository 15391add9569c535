// Ranks that stop in mid-call, come late or never come, and groups that go on without them.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "ops/dispatch/gpu_faults.hpp"
#include "ops/dispatch/gpu_ways.hpp"
#include "ops/dispatch/stage.hpp"
#include "support/errors.hpp"
#include "support/gpu.hpp"
#include "support/rank_threads.hpp"

namespace mixlane {
namespace {

using namespace std::chrono_literals;
using test::GpuRank;
using test::GpuWay;
using test::Inputs;
using test::make_all_inputs;
using test::make_inputs;
using test::Oracle;
using test::Rng;
using test::run_ranks;
using test::small_config;

class GpuFailures : public test::GpuTest {};
class GpuFailuresByWay : public GpuFailures, public testing::WithParamInterface<GpuWay> {
 protected:
  void SetUp() override {
    GpuFailures::SetUp();
    if (!IsSkipped() && GetParam().name == "throughput" && gpu::compute_capability(0) < 90)
      GTEST_SKIP() << "needs bulk copies";
  }
};
INSTANTIATE_TEST_SUITE_P(Dispatch, GpuFailuresByWay, testing::ValuesIn(test::gpu_ways()),
                         [](const auto& each) { return each.param.name; });

// A stream of its own on the rank's GPU, with all that it needs: taking memory may wait for running kernels.
class OtherStream {
 public:
  explicit OtherStream(int rank)
      : device_(test::device_of_rank(rank)), stream_(device_), memory_(device_, kBytes), host_(kBytes) {}
  // It does what it is given.
  void expect_alive() {
    const gpu::DeviceGuard guard(device_);
    ++value_;
    gpu::fill(memory_.data(), value_, kBytes, stream_.get());
    gpu::copy(host_.as<uint8_t>(), memory_.data(), kBytes, stream_.get());
    gpu::synchronize(stream_.get());
    EXPECT_EQ(host_.as<uint8_t>()[kBytes - 1], value_);
  }

 private:
  static constexpr int64_t kBytes = 64;
  Device device_;
  gpu::OwnedStream stream_;
  gpu::Buffer memory_;
  gpu::PinnedBuffer host_;
  uint8_t value_ = 0;
};

// Rounds of rank 1 alone. What it says last.
Status play_until_left_out(GpuRank& gpu_rank, const GpuWay& way) {
  for (uint64_t round = 1; round <= 4; ++round) {
    const std::vector<Inputs> inputs = way.inputs(round, false);
    const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
    const ReceivedRows received = way.run_dispatch(gpu_rank, inputs[1]);
    if (const Status status = gpu_rank.take_status(); !status.ok()) return status;
    way.run_combine(gpu_rank, received, oracle);
    if (const Status status = gpu_rank.take_status(); !status.ok()) return status;
  }
  return {};
}

// Rank 1 stops after a part of what it sends in the second round, in `stage`, for longer than the deadline. The others
// name it within the deadline and play further rounds without it; when it goes on it learns that it is left out.
void expect_the_others_to_go_on(const GpuWay& way, ExchangeStage stage) {
  constexpr auto kDeadline = 300ms;
  const test::FaultScope fault(stage == ExchangeStage::dispatch ? "stall_900:dispatch:1:2" : "stall_900:combine:1:2");
  run_ranks(
      way.num_ranks,
      [&](auto comm) {
        GpuRank gpu_rank(comm, test::masking(way.config()));
        const int rank = comm->rank();
        OtherStream other_stream(rank);
        comm->barrier();
        if (rank == 1) {
          EXPECT_EQ(play_until_left_out(gpu_rank, way).code, ErrorCode::rank_masked);
          return;
        }
        for (uint64_t round = 1; round <= 4; ++round) {
          const bool stops = round == 2, in_dispatch = stops && stage == ExchangeStage::dispatch;
          const std::vector<Inputs> inputs = way.inputs(round, false);
          const Oracle oracle{gpu_rank.dispatcher().config(), inputs, in_dispatch || round > 2 ? 1u << 1 : 0u};
          const auto begin = std::chrono::steady_clock::now();
          const ReceivedRows received = way.run_dispatch(gpu_rank, inputs[rank]);
          const std::vector<uint16_t> output = way.run_combine(gpu_rank, received, oracle);
          const auto took = std::chrono::steady_clock::now() - begin;
          const Status status = gpu_rank.take_status();
          EXPECT_EQ(status.code, stops ? ErrorCode::peer_timeout : ErrorCode::ok) << describe(status);
          if (stops) {
            EXPECT_EQ(status.peer, 1);
            EXPECT_EQ(status.rank, rank);
            EXPECT_GE(status.waited_us, 290'000);
            EXPECT_LT(took, 2 * kDeadline);
            other_stream.expect_alive();
          }
          // Of the combine in which rank 1 stops there are tokens with its part and some without.
          if (stops && !in_dispatch) continue;
          test::expect_received(received, oracle, rank);
          EXPECT_EQ(output, oracle.output(rank, false)) << "round " << round;
        }
        EXPECT_EQ(gpu_rank.dispatcher().masked_ranks(), std::vector<int>{1});
      },
      kDeadline);
}

TEST_P(GpuFailuresByWay, ARankThatStopsInADispatch) { expect_the_others_to_go_on(GetParam(), ExchangeStage::dispatch); }
TEST_P(GpuFailuresByWay, ARankThatStopsInACombine) { expect_the_others_to_go_on(GetParam(), ExchangeStage::combine); }

// With OnPeerTimeout::fail. While the others wait, and after they have given up, the GPU serves other streams and groups.
TEST_P(GpuFailuresByWay, ARankThatNeverComesIsNamed) {
  const GpuWay& way = GetParam();
  run_ranks(
      way.num_ranks,
      [&](auto comm) {
        GpuRank gpu_rank(comm, way.config());
        const int rank = comm->rank();
        OtherStream other_stream(rank);
        const std::vector<Inputs> inputs = way.inputs(2, false);
        comm->barrier();
        way.run_dispatch(gpu_rank, inputs[rank]);
        EXPECT_TRUE(gpu_rank.take_status().ok());
        comm->barrier();
        if (rank == 1) {
          std::this_thread::sleep_for(1000ms);
          return;
        }
        gpu_rank.send(inputs[rank]);
        const auto before = std::chrono::steady_clock::now();
        gpu_rank.dispatcher().dispatch(gpu_rank.dispatch_args(inputs[rank].num_tokens, {.variant = way.dispatch}),
                                       gpu_rank.stream());
        other_stream.expect_alive();
        EXPECT_LT(std::chrono::steady_clock::now() - before, 280ms) << "something else waited";
        const Status status = gpu_rank.take_status();
        const auto waited = std::chrono::steady_clock::now() - before;
        EXPECT_GE(waited, 290ms);
        EXPECT_LE(waited, 900ms);
        EXPECT_EQ(status.code, ErrorCode::peer_timeout);
        EXPECT_EQ(status.peer, 1);
        EXPECT_EQ(status.rank, rank);
        EXPECT_EQ(status.expected, 2);
        EXPECT_GE(status.waited_us, 290'000);
        // The group has ended for this rank, and says so at once.
        test::expect_error(ErrorCode::peer_timeout, {"rank 1"}, [&] { way.run_dispatch(gpu_rank, inputs[rank]); });
        other_stream.expect_alive();
      },
      300ms);
  run_ranks(way.num_ranks, [&](auto comm) {
    GpuRank gpu_rank(comm, way.config());
    const std::vector<Inputs> inputs = way.inputs(3, false);
    const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
    const ReceivedRows received = way.run_dispatch(gpu_rank, inputs[comm->rank()]);
    EXPECT_EQ(way.run_combine(gpu_rank, received, oracle), oracle.output(comm->rank(), false));
  });
}

TEST_F(GpuFailures, ARankThatIsLateWithinTheDeadlineIsAwaited) {
  run_ranks(2, [](auto comm) {
    GpuRank gpu_rank(comm, small_config());
    const int rank = comm->rank();
    const std::vector<Inputs> inputs = make_all_inputs(11, small_config(), 2);
    const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
    comm->barrier();
    if (rank == 0) std::this_thread::sleep_for(2s);
    const ReceivedRows received = gpu_rank.dispatch(inputs[rank]);
    test::expect_received(received, oracle, rank);
    if (rank == 1) std::this_thread::sleep_for(2s);
    EXPECT_EQ(gpu_rank.combine(received, oracle, true), oracle.output(rank, true));
    EXPECT_TRUE(gpu_rank.take_status().ok());
  });
}

TEST_F(GpuFailures, ARankThatIsLateByMoreIsLeftOutAndLearnsIt) {
  run_ranks(
      3,
      [](auto comm) {
        const DispatcherConfig config = test::masking(small_config());
        GpuRank gpu_rank(comm, config);
        const int rank = comm->rank();
        comm->barrier();
        if (rank == 2) {
          std::this_thread::sleep_for(2s);
          Rng rng(1);
          gpu_rank.dispatch(make_inputs(rng, config, 5, false));
          gpu_rank.take_status();
          gpu_rank.dispatch(make_inputs(rng, config, 5, false));
          EXPECT_EQ(gpu_rank.take_status().code, ErrorCode::rank_masked);
          return;
        }
        test::play_without(gpu_rank, 2, 0, 4, [&](uint64_t seed, uint32_t masked) {
          const std::vector<Inputs> inputs = make_all_inputs(seed, config, 3);
          const Oracle oracle{gpu_rank.dispatcher().config(), inputs, masked};
          const ReceivedRows received = gpu_rank.dispatch(inputs[rank]);
          test::expect_received(received, oracle, rank);
          EXPECT_EQ(gpu_rank.combine(received, oracle, true), oracle.output(rank, true));
        });
        EXPECT_EQ(gpu_rank.dispatcher().masked_ranks(), std::vector<int>{2});
      },
      400ms);
}

TEST_F(GpuFailures, GraphsGoOnWithoutARank) {
  run_ranks(
      3,
      [](auto comm) {
        const DispatcherConfig config = test::masking(small_config());
        GpuRank gpu_rank(comm, config);
        const int rank = comm->rank();
        const test::GpuCall on_device{.count_on_device = true};
        ReceivedRows rows;
        const gpu::Graph graph = gpu::Graph::capture(test::device_of_rank(rank), [&](Stream stream) {
          rows = gpu_rank.dispatcher().dispatch(gpu_rank.dispatch_args(0, on_device), stream);
        });
        comm->barrier();
        test::play_without(gpu_rank, 1, 2, rank == 1 ? 2 : 5, [&](uint64_t seed, uint32_t masked) {
          const std::vector<Inputs> inputs = make_all_inputs(seed, config, 3);
          const Oracle oracle{gpu_rank.dispatcher().config(), inputs, masked};
          gpu_rank.send(inputs[rank], on_device);
          graph.launch(gpu_rank.stream());
          test::expect_received(gpu_rank.fetch(rows), oracle, rank);
        });
        if (rank == 1) std::this_thread::sleep_for(1s);
      },
      300ms);
}

TEST_F(GpuFailures, DifferentConfigurationsAreRefusedByName) {
  const auto expect_refused = [](const char* field, const std::vector<std::string>& values, auto&& change) {
    run_ranks(2, [&](auto comm) {
      DispatcherConfig config = small_config();
      if (comm->rank() == 1) change(config);
      Context context({.device = test::device_of_rank(comm->rank()), .num_threads = 1});
      std::vector<std::string> mentions{field};
      mentions.insert(mentions.end(), values.begin(), values.end());
      test::expect_error(ErrorCode::config_mismatch, mentions, [&] { Dispatcher(context, comm, config); });
    });
  };
  expect_refused("capacity", {"0", "7"}, [](DispatcherConfig& config) { config.capacity = 7; });
  expect_refused("hidden", {"24", "32"}, [](DispatcherConfig& config) { config.hidden = 32; });
  expect_refused("early_rows", {"yes", "no"}, [](DispatcherConfig& config) { config.early_rows = true; });
}

// More than the GPU has if one group's memory outlived it.
TEST_F(GpuFailures, WindowsAreGivenBack) {
  constexpr int kTimes = 12;
  const int ranks_per_gpu = gpu::num_devices() > 1 ? 1 : 2;
  const int64_t bytes = gpu::properties(0).memory_bytes / 8 / ranks_per_gpu;
  run_ranks(2, [&](auto comm) {
    for (int i = 0; i < kTimes; ++i) {
      const auto windows = comm->allocate(bytes, "windows", test::device_of_rank(comm->rank()));
      ASSERT_NE(windows->part(1 - comm->rank()), nullptr);
    }
  });
}

}  // namespace
}  // namespace mixlane
