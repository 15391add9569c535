#include <gtest/gtest.h>

#include <mutex>

#include "ops/dispatch/exchange.hpp"
#include "ops/dispatch/op.hpp"
#include "support/errors.hpp"

namespace mixlane {
namespace {

using test::Inputs;
using test::make_all_inputs;
using test::make_inputs;
using test::Oracle;
using test::Rng;
using test::small_config;

const ContextOptions kOneThread{.device = {}, .num_threads = 1};

// A random sequence of calls, the same on all ranks: mostly dispatch and combine in turn, sometimes one of them twice, a
// replay, or a combine without a dispatch before.
void play(std::shared_ptr<Communicator> comm, const DispatcherConfig& config, int num_rounds, uint64_t seed) {
  Context context(kOneThread);
  Dispatcher dispatcher(context, comm, config);
  const int rank = comm->rank(), num_ranks = comm->num_ranks();
  Rng script(seed), delays(seed * 1000 + static_cast<uint64_t>(rank));
  for (int round = 0; round < num_rounds; ++round) {
    const uint64_t what = script() % 8;
    std::vector<Inputs> inputs = make_all_inputs(script(), config, num_ranks);
    const Oracle oracle{dispatcher.config(), inputs};
    Status status;
    test::random_delay(delays, 300);
    ReceivedRows received = dispatcher.dispatch(inputs[rank].dispatch_args(config, &status));
    test::random_delay(delays, 300);
    test::expect_received(received, oracle, rank);
    if (what == 0) {  // again, other data by the same call
      const uint64_t again = script();
      inputs = make_all_inputs(again, config, num_ranks);
      received = dispatcher.dispatch(inputs[rank].dispatch_args(config, &status));
      test::expect_received(received, oracle, rank);
    }
    if (what == 1) {  // new rows by the same routing
      Rng rows(script());
      for (Inputs& in : inputs)
        for (uint16_t& bits : in.hidden) bits = static_cast<uint16_t>(rows());  // NaNs of all kinds too
      DispatchArgs args = inputs[rank].dispatch_args(config, &status);
      args.replay = received.handle;
      received = dispatcher.dispatch(args);
      test::expect_received(received, oracle, rank);
      continue;  // sums of NaNs say nothing
    }
    if (what == 2) continue;  // no combine at all
    const bool with_addend = script() % 2 == 0;
    EXPECT_EQ(test::combine(dispatcher, received, oracle, with_addend, &status), oracle.output(rank, with_addend))
        << "rank " << rank << " of " << num_ranks << " round " << round;
    test::random_delay(delays, 300);
    if (what == 3) {
      EXPECT_EQ(test::combine(dispatcher, received, oracle, with_addend, &status), oracle.output(rank, with_addend));
    }
    EXPECT_TRUE(status.ok()) << describe(status);
  }
}

class AnyRanks : public testing::TestWithParam<int> {};

TEST_P(AnyRanks, RandomCallsGiveWhatTheOracleGives) {
  const int num_ranks = GetParam();
  const int num_rounds = num_ranks >= 64 ? 4 : num_ranks >= 16 ? 12 : 60;
  test::run_rank_threads(num_ranks, [&](auto comm) { play(comm, small_config(), num_rounds, 7 + num_ranks); });
}

TEST_P(AnyRanks, PlacementsOfTheirOwn) {
  const int num_ranks = GetParam();
  DispatcherConfig config = small_config();
  config.num_experts = 8;
  config.num_topk = 4;
  config.combine_wire = CombineWire::f32;
  // Not contiguous, and where there are ranks enough some own nothing.
  for (int e = 0; e < config.num_experts; ++e) config.expert_rank.push_back((e * 5 + 1) % ((num_ranks + 1) / 2));
  test::run_rank_threads(num_ranks, [&](auto comm) { play(comm, config, num_ranks >= 16 ? 4 : 15, 3); });
}

INSTANTIATE_TEST_SUITE_P(Protocol, AnyRanks, testing::Values(1, 2, 3, 4, 5, 7, 8, 16, 64));

TEST(Protocol, HundredsOfRounds) {
  test::run_rank_threads(4, [&](auto comm) { play(comm, small_config(), 400, 99); });
}

TEST(Protocol, ZeroTokensEverywhere) {
  test::run_rank_threads(3, [](auto comm) {
    Context context(kOneThread);
    const DispatcherConfig config = small_config();
    Dispatcher dispatcher(context, comm, config);
    const std::vector<Inputs> inputs(3);
    const Oracle oracle{dispatcher.config(), inputs};
    for (int round = 0; round < 5; ++round) {
      const ReceivedRows received = dispatcher.dispatch(inputs[0].dispatch_args(config, nullptr));
      test::expect_received(received, oracle, comm->rank());
      EXPECT_TRUE(test::combine(dispatcher, received, oracle, false).empty());
    }
  });
}

TEST(Protocol, OverflowIsReportedAndTheRestIsRight) {
  test::run_rank_threads(3, [](auto comm) {
    Context context(kOneThread);
    DispatcherConfig config = small_config();
    config.capacity = 4;
    Dispatcher dispatcher(context, comm, config);
    const int rank = comm->rank();
    int num_overflows = 0;
    for (uint64_t seed = 0; seed < 30; ++seed) {
      const std::vector<Inputs> inputs = make_all_inputs(seed, config, 3);
      const Oracle oracle{dispatcher.config(), inputs};
      DispatcherConfig unlimited_config = dispatcher.config();
      unlimited_config.capacity = 1000;
      const Oracle unlimited{unlimited_config, inputs};
      Status status, combine_status;
      const ReceivedRows received = dispatcher.dispatch(inputs[rank].dispatch_args(config, &status));
      test::expect_received(received, oracle, rank);

      int64_t unsent = 0, first_peer = -1;
      for (int dest = 2; dest >= 0; --dest) {
        const auto needed = static_cast<int64_t>(unlimited.tokens(rank, dest).size());
        EXPECT_EQ(counts(received.handle).sent[dest], std::min<int64_t>(needed, 4));
        if (needed > 4) first_peer = dest;
        unsent += std::max<int64_t>(0, needed - 4);
      }
      EXPECT_EQ(status.failures, unsent);
      if (unsent > 0) {
        ++num_overflows;
        const std::vector<int64_t> needed = unlimited.tokens(rank, static_cast<int>(first_peer));
        EXPECT_EQ(status.code, ErrorCode::capacity_overflow);
        EXPECT_EQ(status.rank, rank);
        EXPECT_EQ(status.peer, first_peer);
        EXPECT_EQ(status.expected, 4);
        EXPECT_EQ(status.got, static_cast<int64_t>(needed.size()));
        EXPECT_EQ(status.token, needed[4]);
      }
      EXPECT_EQ(test::combine(dispatcher, received, oracle, true, &combine_status), oracle.output(rank, true));
      EXPECT_TRUE(combine_status.ok());
    }
    EXPECT_GT(num_overflows, 5);
  });
}

TEST(Protocol, BadIdsAreDroppedAndReported) {
  test::run_rank_threads(2, [](auto comm) {
    Context context(kOneThread);
    const DispatcherConfig config = small_config();
    Dispatcher dispatcher(context, comm, config);
    Rng rng(5);
    std::vector<Inputs> inputs{make_inputs(rng, config, 6, false), make_inputs(rng, config, 6, false)};
    inputs[1].ids[4 * 3 + 1] = 11;
    inputs[1].ids[5 * 3 + 0] = -2;
    const Oracle oracle{dispatcher.config(), inputs};
    Status status;
    const ReceivedRows received = dispatcher.dispatch(inputs[comm->rank()].dispatch_args(config, &status));
    test::expect_received(received, oracle, comm->rank());
    EXPECT_EQ(test::combine(dispatcher, received, oracle, false), oracle.output(comm->rank(), false));
    if (comm->rank() == 0) {
      EXPECT_TRUE(status.ok());
    } else {
      EXPECT_EQ(status.code, ErrorCode::bad_expert_id);
      EXPECT_EQ(status.token, 4);
      EXPECT_EQ(status.got, 11);
      EXPECT_EQ(status.expected, 11);
      EXPECT_EQ(status.failures, 2);
    }
  });
}

TEST(Protocol, OnlyTheFirstNumTokensCount) {
  test::run_rank_threads(2, [](auto comm) {
    Context context(kOneThread);
    const DispatcherConfig config = small_config();
    Dispatcher dispatcher(context, comm, config);
    Rng rng(6);
    std::vector<Inputs> all{make_inputs(rng, config, 8, false), make_inputs(rng, config, 8, false)};
    DispatchArgs args = all[comm->rank()].dispatch_args(config, nullptr);
    const int32_t num_tokens = 3 + comm->rank();
    args.num_tokens = ConstTensorView(&num_tokens, DType::i32, {1});
    const ReceivedRows received = dispatcher.dispatch(args);

    std::vector<Inputs> counted = all;
    for (int r = 0; r < 2; ++r) counted[r].num_tokens = 3 + r;
    const Oracle oracle{dispatcher.config(), counted};
    test::expect_received(received, oracle, comm->rank());
    const Oracle full{dispatcher.config(), all};
    const std::vector<uint16_t> out = test::combine(dispatcher, received, full, false);
    const std::vector<uint16_t> right = oracle.output(comm->rank(), false);
    for (size_t i = 0; i < out.size(); ++i)
      EXPECT_EQ(out[i], i < static_cast<size_t>(num_tokens * 24) ? right[i] : 0xffff) << i;
  });
}

TEST(Protocol, AHandleOfTheLastDispatchOnly) {
  Context context(kOneThread);
  const DispatcherConfig config = small_config();
  Dispatcher dispatcher(context, make_thread_group(1)[0], config);
  Rng rng(1);
  const std::vector<Inputs> inputs{make_inputs(rng, config, 5, false)}, fewer{make_inputs(rng, config, 4, false)};
  const Oracle oracle{dispatcher.config(), inputs};
  const ReceivedRows first = dispatcher.dispatch(inputs[0].dispatch_args(config, nullptr));
  const ReceivedRows second = dispatcher.dispatch(inputs[0].dispatch_args(config, nullptr));
  test::expect_error(ErrorCode::invalid_argument, {"out of date"}, [&] { test::combine(dispatcher, first, oracle, false); });
  ReceivedRows without_handle = second;
  without_handle.handle = {};
  test::expect_error(ErrorCode::invalid_argument, {"empty"},
                     [&] { test::combine(dispatcher, without_handle, oracle, false); });
  DispatchArgs args = fewer[0].dispatch_args(config, nullptr);
  args.replay = second.handle;
  test::expect_error(ErrorCode::invalid_argument, {"4 tokens", "had 5"}, [&] { dispatcher.dispatch(args); });
  std::vector<Inputs> other = inputs;
  other[0].ids.assign(other[0].ids.size(), -1);
  args = other[0].dispatch_args(config, nullptr);
  args.replay = second.handle;
  test::expect_error(ErrorCode::invalid_argument, {"topk_ids differ"}, [&] { dispatcher.dispatch(args); });
  EXPECT_EQ(test::combine(dispatcher, second, oracle, false), oracle.output(0, false));
}

TEST(Protocol, CountsAndCosts) {
  test::run_rank_threads(3, [](auto comm) {
    Context context(kOneThread);
    const DispatcherConfig config = small_config();
    Dispatcher dispatcher(context, comm, config);
    const int rank = comm->rank();
    const std::vector<Inputs> inputs = make_all_inputs(17, config, 3);
    const Oracle oracle{dispatcher.config(), inputs};
    const ReceivedRows received = dispatcher.dispatch(inputs[rank].dispatch_args(config, nullptr));
    const DispatchCounts& seen = counts(received.handle);
    int64_t sent = 0, got = 0, remote = 0;
    for (int peer = 0; peer < 3; ++peer) {
      EXPECT_EQ(seen.sent[peer], static_cast<int32_t>(oracle.tokens(rank, peer).size()));
      EXPECT_EQ(seen.received[peer], static_cast<int32_t>(oracle.tokens(peer, rank).size()));
      sent += seen.sent[peer];
      got += seen.received[peer];
      if (peer != rank) remote += seen.received[peer];
    }
    const int64_t record = 24 * 2 + 3 * 8;
    const ExchangeCost cost = dispatch_cost(dispatcher.config(), seen, rank, inputs[rank].num_tokens, DType::bf16);
    EXPECT_EQ(cost.logical_bytes, got * record);
    EXPECT_EQ(cost.remote_bytes, remote * record);
    EXPECT_EQ(cost.bytes, (inputs[rank].num_tokens + sent) * record);
    const ExchangeCost back =
        combine_cost(dispatcher.config(), seen, rank, {.num_tokens = inputs[rank].num_tokens, .num_rows = 10});
    EXPECT_EQ(back.logical_bytes, sent * 48);
    EXPECT_EQ(back.remote_bytes, (sent - seen.sent[rank]) * 48);
    EXPECT_EQ(back.bytes, 10 * 48 + (got + sent + inputs[rank].num_tokens) * 48);
  });
}

}  // namespace
}  // namespace mixlane
