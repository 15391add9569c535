// dispatch.copy_engine and combine.copy_engine: ranks are threads; where they share a GPU other variants do the work.
#include <gtest/gtest.h>

#include <cstdlib>
#include <thread>

#include "ops/dispatch/copy_args.hpp"
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

const int kManyQueues = setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);

DispatcherConfig small_config() {
  DispatcherConfig config;
  config.hidden = 24;
  config.num_topk = 3;
  config.num_experts = 11;
  config.max_tokens = 9;
  return config;
}

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

TEST_F(CopyEngineGpu, ReducedRows) {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    DispatcherConfig config = small_config();
    config.copy_engine = true;
    config.max_tokens = 600;
    config.capacity = 300;
    run_ranks(3, [&](auto comm) {
      GpuRank gpu_rank(comm, config);
      for (uint64_t seed = 0; seed < 3; ++seed) {
        const std::vector<Inputs> inputs = make_all_inputs(seed, config, 3);
        const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
        const ReceivedRows received = gpu_rank.dispatch(inputs[comm->rank()], {.variant = "dispatch.copy_engine"});
        test::expect_received(received, oracle, comm->rank());
        EXPECT_EQ(gpu_rank.combine_reduced(received, oracle, dtype, "combine.copy_engine"),
                  oracle.output(comm->rank(), false));
      }
    });
  }
}

TEST_F(CopyEngineGpu, ARankThatNeverFetchesIsNamed) {
  run_ranks(
      2,
      [](auto comm) {
        DispatcherConfig config = small_config();
        config.copy_engine = true;
        GpuRank gpu_rank(comm, config);
        Rng rng(2);
        const std::vector<Inputs> inputs(2, make_inputs(rng, config, 6, false));
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

TEST_F(CopyEngineGpu, NeedsMemoryOfItsOwn) {
  run_ranks(1, [](auto comm) {
    GpuRank gpu_rank(comm, small_config());
    DispatchArgs args = gpu_rank.dispatch_args(4);
    args.variant = "dispatch.copy_engine";
    test::expect_error(ErrorCode::unsupported, {"dispatch.copy_engine", "DispatcherConfig::copy_engine"},
                       [&] { gpu_rank.dispatcher().dispatch(args, gpu_rank.stream()); });
  });
}

TEST(CopyRanges, CoverAllRowsInOrder) {
  for (const int64_t rows : {0, 1, 255, 256, 257, 511, 700, 1024, 4096, 8192, 100'000}) {
    const std::vector<exchange_gpu::RowRange> ranges = exchange_gpu::copy_ranges(rows);
    int64_t next = 0;
    for (const exchange_gpu::RowRange& range : ranges) {
      EXPECT_EQ(range.begin, next);
      EXPECT_GT(range.end, range.begin);
      EXPECT_LE(range.end - range.begin, 1024);
      next = range.end;
    }
    EXPECT_EQ(next, rows);
    if (rows >= 1024) {
      EXPECT_EQ(ranges.front().end, 256) << "little is waited for before the first copy";
      EXPECT_LE(ranges.back().end - ranges.back().begin, 384) << "and behind the last one";
    }
    EXPECT_LE(static_cast<int64_t>(ranges.size()), rows / 1024 + 6);
  }
}

}  // namespace
}  // namespace mixlane
