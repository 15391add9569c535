// dispatch.copy_engine and combine.copy_engine: ranks are threads; where they share a GPU other variants do the work.
#include <gtest/gtest.h>

#include <thread>

#include "ops/dispatch/copy_engine/args.hpp"
#include "ops/dispatch/gpu_rank.hpp"
#include "support/errors.hpp"
#include "support/gpu.hpp"
#include "support/rank_threads.hpp"

namespace mixlane {
namespace {

using namespace std::chrono_literals;
using test::GpuCall;
using test::GpuRank;
using test::Inputs;
using test::make_all_inputs;
using test::make_inputs;
using test::Oracle;
using test::Rng;
using test::run_ranks;
using test::small_config;

class CopyEngineGpu : public test::GpuTest {};

// The same graph with copies in it, at other counts each time; the other rank by another variant.
TEST_F(CopyEngineGpu, Graphs) {
  run_ranks(2, [](auto comm) {
    DispatcherConfig config = small_config();
    config.hidden = 264;
    config.max_tokens = 900;
    config.copy_engine = true;
    GpuRank gpu_rank(comm, config);
    const int rank = comm->rank();
    const GpuCall call{.variant = rank == 0 ? "dispatch.copy_engine" : "dispatch.latency", .count_on_device = true};
    ReceivedRows rows;
    const gpu::Graph dispatch = gpu::Graph::capture(test::device_of_rank(rank), [&](Stream stream) {
      rows = gpu_rank.dispatcher().dispatch(gpu_rank.dispatch_args(0, call), stream);
    });
    comm->barrier();
    for (uint64_t seed = 0; seed < 6; ++seed) {
      const std::vector<Inputs> inputs = make_all_inputs(seed, config, 2);
      const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
      gpu_rank.send(inputs[rank], call);
      dispatch.launch(gpu_rank.stream());
      test::expect_received(gpu_rank.fetch(rows), oracle, rank);
      const ReceivedRows again = gpu_rank.dispatch(inputs[rank]);
      EXPECT_EQ(gpu_rank.combine(again, oracle, true, "combine.copy_engine"), oracle.output(rank, true));
    }
    EXPECT_TRUE(gpu_rank.take_status().ok());
  });
}

// Rows of 64 values in bf16 are copied from where they are, others are put together first.
TEST_F(CopyEngineGpu, ReducedRows) {
  for (const int hidden : {24, 64})
    for (const DType dtype : {DType::bf16, DType::f32}) {
      DispatcherConfig config = small_config();
      config.hidden = hidden;
      config.copy_engine = true;
      config.max_tokens = 1400;
      config.capacity = 1200;
      run_ranks(2, [&](auto comm) {
        GpuRank gpu_rank(comm, config);
        const int rank = comm->rank();
        for (const auto& [first, second] : {std::pair{1400, 900}, {300, 1250}, {40, 20}, {0, 700}}) {
          SCOPED_TRACE(testing::Message() << first << " and " << second << " tokens of " << hidden);
          Rng rng(static_cast<uint64_t>(first));
          const std::vector<Inputs> inputs{make_inputs(rng, config, first, true), make_inputs(rng, config, second, true)};
          const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
          const ReceivedRows received = gpu_rank.dispatch(inputs[rank], {.variant = "dispatch.copy_engine"});
          test::expect_received(received, oracle, rank);
          EXPECT_EQ(gpu_rank.combine_reduced(received, oracle, dtype, "combine.copy_engine"), oracle.output(rank, false));
        }
      });
    }
}

TEST_F(CopyEngineGpu, ARankThatNeverCombinesIsNamed) {
  run_ranks(
      2,
      [](auto comm) {
        DispatcherConfig config = small_config();
        config.copy_engine = true;
        config.max_tokens = 90;
        GpuRank gpu_rank(comm, config);
        Rng rng(2);
        const std::vector<Inputs> inputs(2, make_inputs(rng, config, 60, false));
        const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
        const ReceivedRows received = gpu_rank.dispatch(inputs[0], {.variant = "dispatch.copy_engine"});
        comm->barrier();
        if (comm->rank() == 1) {
          std::this_thread::sleep_for(1500ms);
          return;
        }
        gpu_rank.combine(received, oracle, false, "combine.copy_engine");
        const Status status = gpu_rank.take_status();
        EXPECT_EQ(status.code, ErrorCode::peer_timeout);
        EXPECT_EQ(status.peer, 1);
      },
      400ms);
}

// Each half enqueued apart, work of the caller's between.
TEST_F(CopyEngineGpu, Halves) {
  for (const std::string way : {"latency", "copy_engine"})
    run_ranks(2, [&](auto comm) {
      DispatcherConfig config = small_config();
      config.copy_engine = true;
      config.max_tokens = 400;
      GpuRank gpu_rank(comm, config);
      Dispatcher& dispatcher = gpu_rank.dispatcher();
      const int rank = comm->rank();
      const std::string dispatch = "dispatch." + way, combine = "combine." + way;
      for (uint64_t seed = 0; seed < 4; ++seed) {
        const std::vector<Inputs> inputs = make_all_inputs(seed, config, 2);
        const Oracle oracle{dispatcher.config(), inputs};
        gpu_rank.send(inputs[rank]);
        const ReceivedRows sent = dispatcher.dispatch_send(
            gpu_rank.dispatch_args(inputs[rank].num_tokens, {.variant = dispatch}), gpu_rank.stream());
        dispatcher.dispatch_receive(gpu_rank.stream());
        const ReceivedRows received = gpu_rank.fetch(sent);
        test::expect_received(received, oracle, rank);
        const test::ExpertRows made = test::make_expert_rows(received, oracle, rank);
        gpu_rank.send_expert_rows(made);
        CombineArgs args = gpu_rank.combine_args(received.handle, inputs[rank].num_tokens, made.count, true);
        args.variant = combine;
        dispatcher.combine_send(args, gpu_rank.stream());
        dispatcher.combine_receive(gpu_rank.stream());
        EXPECT_EQ(gpu_rank.fetch_output(inputs[rank].num_tokens), oracle.output(rank, true));
      }
      EXPECT_TRUE(gpu_rank.take_status().ok());
    });
}

// A dispatcher and all that its rounds need on the GPU: they can be enqueued again and again without the host.
class MicroBatch {
 public:
  // Ranks have different numbers of tokens.
  MicroBatch(std::shared_ptr<Communicator> comm, const DispatcherConfig& config, uint64_t seed)
      : gpu_rank_(comm, config), rank_(comm->rank()) {
    Rng rng(seed);
    for (int r = 0; r < comm->num_ranks(); ++r)
      inputs_.push_back(make_inputs(rng, config, config.max_tokens - 200 * r, true));
    const ReceivedRows received = gpu_rank_.dispatch(inputs_[rank_]);
    made_ = test::make_expert_rows(received, oracle_, rank_);
    gpu_rank_.send_expert_rows(made_);
  }

  void dispatch_send(Stream stream) {
    received_ = gpu_rank_.dispatcher().dispatch_send(
        gpu_rank_.dispatch_args(num_tokens(), {.variant = "dispatch.copy_engine"}), stream);
  }
  void dispatch_receive(Stream stream) { gpu_rank_.dispatcher().dispatch_receive(stream); }
  void combine_send(Stream stream) {
    CombineArgs args = gpu_rank_.combine_args(received_.handle, num_tokens(), made_.count, true);
    args.variant = "combine.copy_engine";
    gpu_rank_.dispatcher().combine_send(args, stream);
  }
  void combine_receive(Stream stream) { gpu_rank_.dispatcher().combine_receive(stream); }
  void round(Stream stream) {
    dispatch_send(stream);
    dispatch_receive(stream);
    combine_send(stream);
    combine_receive(stream);
  }

  // After which the output is no result any more.
  void expect_results() {
    // A combine is done with the rows; the protocol check then overwrites them.
    if (std::getenv("MIXLANE_CHECK") == nullptr) test::expect_received(gpu_rank_.fetch(received_), oracle_, rank_);
    EXPECT_EQ(gpu_rank_.fetch_output(num_tokens()), oracle_.output(rank_, true));
    const Status status = gpu_rank_.take_status();
    EXPECT_TRUE(status.ok()) << describe(status);
    gpu_rank_.send_expert_rows(made_);
  }

 private:
  int64_t num_tokens() const { return inputs_[rank_].num_tokens; }

  GpuRank gpu_rank_;
  int rank_;
  std::vector<Inputs> inputs_;
  Oracle oracle_{gpu_rank_.dispatcher().config(), inputs_};
  test::ExpertRows made_;
  ReceivedRows received_;
};

DispatcherConfig micro_batch_config() {
  DispatcherConfig config = small_config();
  config.hidden = 1032;
  config.max_tokens = 700;
  config.copy_engine = true;
  return config;
}

// Captures `enqueue` once and replays it; a rank that waits for ever fails at the deadline.
template <class Enqueue>
void replay(Communicator& comm, std::vector<MicroBatch*> batches, Enqueue&& enqueue) {
  const Device device = test::device_of_rank(comm.rank());
  const gpu::OwnedStream stream(device);
  const gpu::Graph graph = gpu::Graph::capture(device, enqueue);
  for (int i = 0; i < 3; ++i) {
    comm.barrier();
    for (int again = 0; again <= i; ++again) graph.launch(stream.get());
    gpu::synchronize(stream.get());
    for (MicroBatch* batch : batches) batch->expect_results();
  }
}

TEST_F(CopyEngineGpu, SeveralRoundsInOneGraph) {
  for (const int num_rounds : {1, 3, 12})
    run_ranks(
        2,
        [&](auto comm) {
          MicroBatch batch(comm, micro_batch_config(), 3);
          replay(*comm, {&batch}, [&](Stream stream) {
            for (int i = 0; i < num_rounds; ++i) batch.round(stream);
          });
        },
        5s);
}

// As a model uses them: one's exchange behind the other's work.
TEST_F(CopyEngineGpu, TwoMicroBatchesOnOneStreamOfAGraph) {
  run_ranks(
      2,
      [](auto comm) {
        MicroBatch first(comm, micro_batch_config(), 4), second(comm, micro_batch_config(), 5);
        replay(*comm, {&first, &second}, [&](Stream stream) {
          for (int i = 0; i < 6; ++i) {
            first.dispatch_send(stream);
            second.dispatch_send(stream);
            first.dispatch_receive(stream);
            first.combine_send(stream);
            second.dispatch_receive(stream);
            second.combine_send(stream);
            first.combine_receive(stream);
            second.combine_receive(stream);
          }
        });
      },
      5s);
}

TEST_F(CopyEngineGpu, TwoMicroBatchesOnBranchesOfAGraph) {
  run_ranks(
      2,
      [](auto comm) {
        MicroBatch first(comm, micro_batch_config(), 6), second(comm, micro_batch_config(), 7);
        const gpu::DeviceGuard guard(test::device_of_rank(comm->rank()));
        const gpu::OwnedStream side(test::device_of_rank(comm->rank()));
        gpu::Event fork, join;
        replay(*comm, {&first, &second}, [&](Stream stream) {
          fork.record(stream);
          fork.hold(side.get());
          for (int i = 0; i < 6; ++i) {
            first.round(stream);
            second.round(side.get());
          }
          join.record(side.get());
          join.hold(stream);
        });
      },
      5s);
}

// A rank with few tokens gets lines from the other, which has rows for kernels to push beside those that are copied.
TEST_F(CopyEngineGpu, RanksOfDifferentSizesAndVariants) {
  DispatcherConfig config = small_config();
  config.hidden = 264;
  config.max_tokens = 600;
  config.copy_engine = true;
  for (const CombineWire wire : {CombineWire::bf16, CombineWire::fp8_1x128, CombineWire::f32, CombineWire::f64})
    run_ranks(2, [&](auto comm) {
      DispatcherConfig of_wire = config;
      of_wire.combine_wire = wire;
      GpuRank gpu_rank(comm, of_wire);
      const int rank = comm->rank();
      uint64_t seed = 0;
      for (const auto& [few, many] : {std::pair{0, 600}, {20, 500}, {33, 600}, {300, 301}, {600, 600}})
        for (const int larger : {0, 1})
          for (const int other : {-1, 0, 1}) {
            SCOPED_TRACE(testing::Message() << few << " and " << many << ", latency on rank " << other);
            Rng rng(++seed);
            std::vector<Inputs> inputs;
            for (int r = 0; r < 2; ++r) inputs.push_back(make_inputs(rng, config, r == larger ? many : few, true));
            const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
            const std::string way = rank == other ? "latency" : "copy_engine";
            const std::string dispatch = "dispatch." + way, combine = "combine." + way;
            const ReceivedRows received = gpu_rank.dispatch(inputs[rank], {.variant = dispatch});
            test::expect_received(received, oracle, rank);
            EXPECT_EQ(gpu_rank.combine(received, oracle, true, combine), oracle.output(rank, true));
          }
      EXPECT_TRUE(gpu_rank.take_status().ok());
    });
}

TEST_F(CopyEngineGpu, NeedsMemoryOfItsOwn) {
  run_ranks(1, [](auto comm) {
    GpuRank gpu_rank(comm, small_config());
    DispatchArgs args = gpu_rank.dispatch_args(4);
    args.variant = "dispatch.copy_engine";
    test::expect_error(ErrorCode::unsupported, {"dispatch.copy_engine", "DispatcherConfig::copy_engine"},
                       [&] { gpu_rank.dispatcher().dispatch(args, gpu_rank.stream()); });
  });
}

TEST_F(CopyEngineGpu, RanksThatShareAGpuSayWhyTheyUseOtherVariants) {
  const int num_ranks = gpu::num_devices() + 1;
  if (num_ranks > 8) GTEST_SKIP() << "more GPUs than ranks";
  run_ranks(num_ranks, [&](auto comm) {
    DispatcherConfig config = small_config();
    config.copy_engine = true;
    GpuRank gpu_rank(comm, config);
    const std::vector<std::string> notices = gpu_rank.context().notices();
    ASSERT_EQ(notices.size(), 1u);
    EXPECT_NE(notices[0].find("copy_engine is replaced by other variants"), std::string::npos) << notices[0];
    EXPECT_NE(notices[0].find("ranks 0 and " + std::to_string(num_ranks - 1) + " share a GPU"), std::string::npos)
        << notices[0];
    const std::vector<Inputs> inputs = make_all_inputs(3, config, num_ranks);
    const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
    const ReceivedRows received = gpu_rank.dispatch(inputs[comm->rank()], {.variant = "dispatch.copy_engine"});
    test::expect_received(received, oracle, comm->rank());
    EXPECT_EQ(gpu_rank.combine(received, oracle, true, "combine.copy_engine"), oracle.output(comm->rank(), true));
  });
}

TEST(CopyRanges, CoverAllRowsInOrder) {
  using namespace exchange_gpu;
  for (const CopyPlan& plan : {kPackedRecords, kPackedPartials, kPartialsInPlace})
    for (const int64_t rows : {0, 1, 255, 256, 257, 511, 700, 1024, 4096, 8192, 100'000}) {
      SCOPED_TRACE(testing::Message() << rows << " rows, " << plan.first << " first");
      const std::vector<RowRange> ranges = copy_ranges(rows, plan);
      int64_t next = 0;
      for (const RowRange& range : ranges) {
        EXPECT_EQ(range.begin, next);
        EXPECT_GT(range.end, range.begin);
        next = range.end;
      }
      EXPECT_EQ(next, rows);
      if (rows > 1024) {
        EXPECT_LE(ranges.front().end, plan.first) << "little is waited for before the first copy";
        if (plan.few_last) {
          EXPECT_LE(ranges.back().end - ranges.back().begin, 512) << "and behind the last one";
        }
      }
      EXPECT_LE(ranges.size(), rows <= 8192 ? 7u : 12u) << "each copy costs";
      for (int64_t fewer = 0; fewer < rows; fewer += 1 + fewer / 8)
        ASSERT_LE(copy_ranges(fewer, plan).size(), ranges.size()) << "there are events for the largest call; " << fewer;
    }
}

}  // namespace
}  // namespace mixlane
