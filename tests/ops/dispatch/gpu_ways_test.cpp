// Each way through dispatch and combine by itself, on few and small rows: results, replays, and what is wrong with the
// input.
#include "ops/dispatch/gpu_ways.hpp"

#include <gtest/gtest.h>

#include <algorithm>

#include "support/gpu.hpp"
#include "support/rank_threads.hpp"

namespace mixlane {
namespace {

using test::GpuRank;
using test::GpuWay;
using test::Inputs;
using test::Oracle;
using test::Rng;
using test::run_ranks;

class GpuWays : public test::GpuTest, public testing::WithParamInterface<GpuWay> {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (!IsSkipped() && GetParam().name == "throughput" && gpu::compute_capability(0) < 90)
      GTEST_SKIP() << "needs bulk copies";
  }
};
INSTANTIATE_TEST_SUITE_P(Dispatch, GpuWays, testing::ValuesIn(test::gpu_ways()),
                         [](const auto& each) { return each.param.name; });

TEST_P(GpuWays, GiveWhatTheOracleGives) {
  const GpuWay& way = GetParam();
  run_ranks(way.num_ranks, [&](auto comm) {
    GpuRank gpu_rank(comm, way.config());
    const int rank = comm->rank();
    for (uint64_t seed = 0; seed < 3; ++seed) {
      const std::vector<Inputs> inputs = way.inputs(seed, seed == 1);
      const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
      const ReceivedRows received = way.run_dispatch(gpu_rank, inputs[rank]);
      test::expect_received(received, oracle, rank);
      EXPECT_EQ(way.run_combine(gpu_rank, received, oracle), oracle.output(rank, false));
    }
    EXPECT_TRUE(gpu_rank.take_status().ok());
  });
}

// New rows by the routing of the dispatch before, and once more.
TEST_P(GpuWays, ReplayARouting) {
  const GpuWay& way = GetParam();
  run_ranks(way.num_ranks, [&](auto comm) {
    GpuRank gpu_rank(comm, way.config());
    const int rank = comm->rank();
    std::vector<Inputs> inputs = way.inputs(8, true);
    const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
    ReceivedRows received = way.run_dispatch(gpu_rank, inputs[rank]);
    for (uint64_t seed = 1; seed < 3; ++seed) {
      Rng rows(seed);
      for (Inputs& in : inputs) in.hidden = test::normal_bf16(rows, static_cast<int64_t>(in.hidden.size()));
      received = way.run_dispatch(gpu_rank, inputs[rank], received.handle);
      test::expect_received(received, oracle, rank);
      EXPECT_EQ(way.run_combine(gpu_rank, received, oracle), oracle.output(rank, false));
    }
    EXPECT_TRUE(gpu_rank.take_status().ok());
  });
}

// The status has the first peer without room for all rows, how many those are, and the first token that is not sent; tokens
// before it are, and so are all to the other peers.
TEST_P(GpuWays, ReportTokensWithoutRoomAndSendTheRest) {
  const GpuWay& way = GetParam();
  run_ranks(way.num_ranks, [&](auto comm) {
    DispatcherConfig config = way.config();
    config.capacity = way.num_tokens / 2 + 1;
    GpuRank gpu_rank(comm, config);
    const int rank = comm->rank();
    int num_overflows = 0;
    for (uint64_t seed = 0; seed < 6; ++seed) {
      const std::vector<Inputs> inputs = way.inputs(seed, true);
      const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
      DispatcherConfig roomy = oracle.config;
      roomy.capacity = config.max_tokens;
      const Oracle all{roomy, inputs};
      const ReceivedRows received = way.run_dispatch(gpu_rank, inputs[rank]);
      test::expect_received(received, oracle, rank);
      const Status status = gpu_rank.take_status();
      int first_peer = -1;
      for (int peer = way.num_ranks - 1; peer >= 0; --peer)
        if (static_cast<int>(all.tokens(rank, peer).size()) > config.capacity) first_peer = peer;
      EXPECT_EQ(status.ok(), first_peer < 0) << describe(status);
      if (first_peer >= 0) {
        ++num_overflows;
        const std::vector<int64_t> needed = all.tokens(rank, first_peer);
        EXPECT_EQ(status.code, ErrorCode::capacity_overflow);
        EXPECT_EQ(status.rank, rank);
        EXPECT_EQ(status.peer, first_peer);
        EXPECT_EQ(status.expected, config.capacity);
        EXPECT_EQ(status.got, static_cast<int64_t>(needed.size()));
        EXPECT_EQ(status.token, needed[static_cast<size_t>(config.capacity)]);
      }
      EXPECT_EQ(way.run_combine(gpu_rank, received, oracle), oracle.output(rank, false));
      EXPECT_TRUE(gpu_rank.take_status().ok());
    }
    EXPECT_GT(num_overflows, 1);
  });
}

TEST_P(GpuWays, DropAndReportBadIds) {
  const GpuWay& way = GetParam();
  run_ranks(way.num_ranks, [&](auto comm) {
    const DispatcherConfig config = way.config();
    GpuRank gpu_rank(comm, config);
    const int rank = comm->rank();
    std::vector<Inputs> inputs = way.inputs(5, false);
    inputs[1].ids[4 * 3 + 1] = config.num_experts;
    inputs[1].ids[5 * 3 + 0] = -2;
    const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
    const ReceivedRows received = way.run_dispatch(gpu_rank, inputs[rank]);
    test::expect_received(received, oracle, rank);
    const Status status = gpu_rank.take_status();
    EXPECT_EQ(way.run_combine(gpu_rank, received, oracle), oracle.output(rank, false));
    EXPECT_TRUE(gpu_rank.take_status().ok());
    if (rank != 1) {
      EXPECT_TRUE(status.ok());
      return;
    }
    EXPECT_EQ(status.code, ErrorCode::bad_expert_id);
    EXPECT_EQ(status.token, 4);
    EXPECT_EQ(status.got, config.num_experts);
    EXPECT_EQ(status.expected, config.num_experts);
    EXPECT_EQ(status.failures, 2);
  });
}

// A number of tokens on the device that can't be: none count, or all rows that there are.
TEST_P(GpuWays, ReportNumbersOfTokensOutOfRange) {
  const GpuWay& way = GetParam();
  run_ranks(way.num_ranks, [&](auto comm) {
    GpuRank gpu_rank(comm, way.config());
    const int rank = comm->rank(), most = way.config().max_tokens;
    for (const int given : {-3, most + 5, most}) {
      Rng rng(3);
      std::vector<Inputs> inputs;
      for (int r = 0; r < way.num_ranks; ++r) inputs.push_back(test::make_inputs(rng, way.config(), most, true));
      std::vector<Inputs> counted = inputs;
      counted[1].num_tokens = std::clamp(given, 0, most);
      inputs[1].num_tokens = given;
      const Oracle oracle{gpu_rank.dispatcher().config(), counted};
      const ReceivedRows received = gpu_rank.dispatch(inputs[rank], {.variant = way.dispatch, .count_on_device = true});
      test::expect_received(received, oracle, rank);
      const Status status = gpu_rank.take_status();
      if (rank != 1 || given == most) {
        EXPECT_TRUE(status.ok()) << describe(status);
        continue;
      }
      EXPECT_EQ(status.code, ErrorCode::invalid_argument);
      EXPECT_EQ(status.rank, 1);
      EXPECT_EQ(status.expected, most);
      EXPECT_EQ(status.got, given);
    }
  });
}

// A pair without a row among the experts' rows adds nothing.
TEST_P(GpuWays, ReportSlotsOutOfRange) {
  const GpuWay& way = GetParam();
  if (way.reduced) GTEST_SKIP() << "has no slots";
  run_ranks(way.num_ranks, [&](auto comm) {
    GpuRank gpu_rank(comm, way.config());
    const DispatcherConfig& config = gpu_rank.dispatcher().config();
    const int rank = comm->rank();
    std::vector<Inputs> inputs = way.inputs(2, false);
    const Oracle sent{config, inputs};
    const ReceivedRows received = way.run_dispatch(gpu_rank, inputs[rank]);
    test::ExpertRows made = test::make_expert_rows(received, sent, rank);
    const int64_t row = config.capacity;  // the first one from rank 1, which is its token 0 if that has an expert here
    int wrong = -1;
    if (rank == 0 && received.recv_count.as<int32_t>()[1] > 0)
      for (int k = config.num_topk - 1; k >= 0; --k)
        if (made.slots[static_cast<size_t>(row * config.num_topk + k)] >= 0) wrong = k;
    if (rank == 0) {
      ASSERT_GE(wrong, 0);
      made.slots[static_cast<size_t>(row * config.num_topk + wrong)] = made.count;
    }
    gpu_rank.send_expert_rows(made);
    CombineArgs args = gpu_rank.combine_args(received.handle, inputs[rank].num_tokens, made.count, false);
    args.variant = way.combine;
    gpu_rank.dispatcher().combine(args, gpu_rank.stream());
    const std::vector<uint16_t> output = gpu_rank.fetch_output(inputs[rank].num_tokens);
    const Status status = gpu_rank.take_status();
    const int64_t token = sent.tokens(1, 0).front();
    std::vector<Inputs> without = inputs;
    for (int k = 0; k < config.num_topk; ++k) {
      int32_t& id = without[1].ids[static_cast<size_t>(token * config.num_topk + k)];
      if (sent.owner(id) != 0) continue;
      id = -1;
      break;
    }
    EXPECT_EQ(output, (Oracle{config, without}.output(rank, false)));
    EXPECT_EQ(status.ok(), rank != 0) << describe(status);
    if (rank != 0) return;
    EXPECT_EQ(status.code, ErrorCode::invalid_argument);
    EXPECT_EQ(status.token, row);
    EXPECT_EQ(status.expected, made.count);
    EXPECT_EQ(status.got, made.count);
  });
}

}  // namespace
}  // namespace mixlane
