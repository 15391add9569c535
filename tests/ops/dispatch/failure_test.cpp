// Ranks that come late, refuse a call or leave: rank threads.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "core/error.hpp"
#include "ops/dispatch/exchange.hpp"
#include "support/errors.hpp"

namespace mixlane {
namespace {

using namespace std::chrono_literals;
using test::expect_error;
using test::Inputs;
using test::Oracle;
using Clock = std::chrono::steady_clock;

const ContextOptions kOneThread{.device = {}, .num_threads = 1};
constexpr auto kDeadline = 300ms;
constexpr auto kLate = 1000ms;

DispatcherConfig config_of(OnPeerTimeout on_timeout) {
  DispatcherConfig config;
  config.hidden = 16;
  config.num_topk = 3;
  config.num_experts = 12;
  config.max_tokens = 8;
  config.on_peer_timeout = on_timeout;
  return config;
}

// A rank of a test: its dispatcher and the inputs of everybody for each call.
struct Rank {
  Context context{kOneThread};
  DispatcherConfig config;
  Dispatcher dispatcher;
  int rank;
  int num_ranks;

  Rank(std::shared_ptr<Communicator> comm, OnPeerTimeout on_timeout)
      : config(config_of(on_timeout)), dispatcher(context, comm, config), rank(comm->rank()), num_ranks(comm->num_ranks()) {
    comm->set_deadline(kDeadline);
  }

  std::vector<Inputs> inputs(uint64_t call) const { return test::make_all_inputs(call, config, num_ranks); }
  ReceivedRows dispatch(uint64_t call, Status* status = nullptr) {
    return dispatcher.dispatch(inputs(call)[rank].dispatch_args(config, status));
  }
  // Dispatch and combine with checked results; `masked` at each half.
  void exchange(uint64_t call, uint64_t masked_in_dispatch, uint64_t masked_in_combine, Status* status) {
    const std::vector<Inputs> all = inputs(call);
    const ReceivedRows received = dispatcher.dispatch(all[rank].dispatch_args(config, status));
    test::expect_received(received, {dispatcher.config(), all, masked_in_dispatch}, rank);
    const Oracle after{dispatcher.config(), all, masked_in_combine};
    EXPECT_EQ(test::combine(dispatcher, received, after, true, status), after.output(rank, true)) << "call " << call;
  }
};

TEST(Failure, ALateRankIsNamedByAllAndTheyStop) {
  test::run_rank_threads(4, [](auto comm) {
    Rank me(comm, OnPeerTimeout::fail);
    me.exchange(1, 0, 0, nullptr);
    if (me.rank == 2) std::this_thread::sleep_for(kLate);
    const auto start = Clock::now();
    // The late one learns from the others that they have given it up.
    expect_error(ErrorCode::peer_timeout, {"no answer from rank 2", "epoch expected 2, got 1"}, [&] { me.dispatch(2); });
    if (me.rank != 2) {
      EXPECT_LT(Clock::now() - start, kLate);
    }
    expect_error(ErrorCode::peer_timeout, {"rank 2"}, [&] { me.dispatch(3); });
  });
}

TEST(Failure, ALateCombineIsNamed) {
  test::run_rank_threads(3, [](auto comm) {
    Rank me(comm, OnPeerTimeout::fail);
    const std::vector<Inputs> all = me.inputs(5);
    const Oracle oracle{me.dispatcher.config(), all};
    const ReceivedRows received = me.dispatch(5);
    if (me.rank == 1) std::this_thread::sleep_for(kLate);
    expect_error(ErrorCode::peer_timeout, {"no answer from rank 1"},
                 [&] { test::combine(me.dispatcher, received, oracle, false); });
  });
}

// Rank 0 waits for rank 1 in combine, which waits for rank 2 in dispatch: both must blame rank 2.
TEST(Failure, TheRankThatHoldsUpTheOthersIsBlamed) {
  test::run_rank_threads(3, [](auto comm) {
    Rank me(comm, OnPeerTimeout::fail);
    me.exchange(1, 0, 0, nullptr);
    if (me.rank == 1) std::this_thread::sleep_for(kDeadline / 2);
    if (me.rank == 2) std::this_thread::sleep_for(2 * kLate);
    expect_error(ErrorCode::peer_timeout, {"no answer from rank 2"}, [&] {
      me.dispatch(2);
      me.dispatch(3);
    });
  });
}

TEST(Failure, MaskedRanksAreLeftOutAndTheOthersGoOn) {
  for (const int num_ranks : {2, 3, 5}) {
    test::run_rank_threads(num_ranks, [](auto comm) {
      Rank me(comm, OnPeerTimeout::mask);
      const uint64_t masked = 0b10;
      Status status;
      me.exchange(1, 0, 0, &status);
      EXPECT_TRUE(status.ok());
      if (me.rank == 1) {
        std::this_thread::sleep_for(kLate);
        expect_error(ErrorCode::rank_masked, {"rank 1: rank", "gave this rank up"}, [&] { me.dispatch(2, &status); });
        expect_error(ErrorCode::rank_masked, {}, [&] { me.dispatch(3, &status); });
        return;
      }
      me.exchange(2, masked, masked, &status);
      EXPECT_EQ(status.code, ErrorCode::peer_timeout);
      EXPECT_EQ(status.peer, 1);
      EXPECT_EQ(status.rank, me.rank);
      EXPECT_EQ(status.failures, 1);
      EXPECT_EQ(status.expected, 2);
      EXPECT_EQ(status.got, 1);
      EXPECT_GE(status.waited_us, 1000);
      EXPECT_EQ(me.dispatcher.masked_ranks(), std::vector<int>{1});

      const auto start = Clock::now();
      Status later;
      for (uint64_t call = 3; call < 23; ++call) me.exchange(call, masked, masked, &later);
      EXPECT_TRUE(later.ok()) << describe(later);
      EXPECT_LT(Clock::now() - start, kDeadline + 200ms) << "nobody waits for a masked rank";
    });
  }
}

TEST(Failure, ARankMaskedInCombineContributesNothing) {
  test::run_rank_threads(4, [](auto comm) {
    Rank me(comm, OnPeerTimeout::mask);
    Status status;
    const std::vector<Inputs> all = me.inputs(9);
    const ReceivedRows received = me.dispatch(9, &status);
    test::expect_received(received, {me.dispatcher.config(), all}, me.rank);
    const Oracle without{me.dispatcher.config(), all, 0b1000};
    if (me.rank == 3) {
      std::this_thread::sleep_for(kLate);
      expect_error(ErrorCode::rank_masked, {}, [&] {
        test::combine(me.dispatcher, received, {me.dispatcher.config(), all}, false, &status);
      });
      return;
    }
    const Oracle sent{me.dispatcher.config(), all};
    EXPECT_EQ(test::combine(me.dispatcher, received, sent, true, &status), without.output(me.rank, true));
    EXPECT_EQ(status.peer, 3);
    me.exchange(10, 0b1000, 0b1000, nullptr);
  });
}

TEST(Failure, TwoLateRanksAndBrokenChains) {
  test::run_rank_threads(5, [](auto comm) {
    Rank me(comm, OnPeerTimeout::mask);
    Status status;
    me.dispatch(1, &status);
    if (me.rank == 0 || me.rank == 4) {
      std::this_thread::sleep_for(kLate);
      expect_error(ErrorCode::rank_masked, {}, [&] { me.dispatch(2, &status); });
      return;
    }
    me.exchange(2, 0b10001, 0b10001, &status);
    EXPECT_EQ(status.failures, 2);
    EXPECT_EQ(me.dispatcher.masked_ranks(), (std::vector<int>{0, 4}));
    me.dispatch(3);
    me.exchange(4, 0b10001, 0b10001, nullptr);
  });
}

// A refused call fails on all ranks at once with the words of the one that refused it; the next call works.
TEST(Failure, ARefusedCallFailsAtOnceEverywhere) {
  for (const OnPeerTimeout on_timeout : {OnPeerTimeout::fail, OnPeerTimeout::mask}) {
    test::run_rank_threads(4, [&](auto comm) {
      Rank me(comm, on_timeout);
      comm->set_deadline(20s);
      const auto start = Clock::now();
      uint64_t call = 0;
      for (int round = 0; round < 10; ++round) {
        me.exchange(++call, 0, 0, nullptr);
        const std::vector<uint16_t> many(9 * 16);
        expect_error(ErrorCode::invalid_argument,
                     me.rank == 1 ? std::vector<std::string>{"9 tokens", "made for 8"}
                                  : std::vector<std::string>{"rank 1 refused dispatch", "9 tokens", "made for 8"},
                     [&] {
                       const std::vector<Inputs> fine = me.inputs(++call);
                       DispatchArgs args = fine[me.rank].dispatch_args(me.config, nullptr);
                       if (me.rank == 1) args.hidden = ConstTensorView(many.data(), DType::bf16, {9, 16});
                       me.dispatcher.dispatch(args);
                     });
        me.exchange(++call, 0, 0, nullptr);

        const std::vector<Inputs> all = me.inputs(++call);
        const Oracle oracle{me.dispatcher.config(), all};
        ReceivedRows received = me.dispatch(call);
        expect_error(ErrorCode::invalid_argument,
                     me.rank == 2 ? std::vector<std::string>{"handle is empty"}
                                  : std::vector<std::string>{"rank 2 refused combine", "handle is empty"},
                     [&] {
                       ReceivedRows broken = received;
                       if (me.rank == 2) broken.handle = {};
                       test::combine(me.dispatcher, broken, oracle, false);
                     });
        EXPECT_EQ(test::combine(me.dispatcher, received, oracle, false), oracle.output(me.rank, false));
      }
      EXPECT_TRUE(me.dispatcher.masked_ranks().empty());
      EXPECT_LT(Clock::now() - start, 15s) << "nobody waits for the deadline";
    });
  }
}

TEST(Failure, BadIdsWithoutAStatusRefuseTheCallOnAllRanks) {
  test::run_rank_threads(3, [](auto comm) {
    Rank me(comm, OnPeerTimeout::fail);
    comm->set_deadline(20s);
    std::vector<Inputs> all;
    test::Rng rng(4);
    for (int r = 0; r < 3; ++r) all.push_back(test::make_inputs(rng, me.config, 4, false));
    all[0].ids[7] = 12;
    expect_error(ErrorCode::bad_expert_id, {"expert id 12 at token 2"},
                 [&] { me.dispatcher.dispatch(all[me.rank].dispatch_args(me.config, nullptr)); });
    me.exchange(2, 0, 0, nullptr);
  });
}

TEST(Failure, ARankThatLeavesIsNamedAtOnce) {
  const auto start = Clock::now();
  test::run_rank_threads(3, [](auto comm) {
    Rank me(comm, OnPeerTimeout::fail);
    comm->set_deadline(20s);
    if (me.rank == 0) return me.exchange(1, 0, 0, nullptr);
    // One of the two may have noticed and failed while the other is still at the end of its first exchange.
    expect_error(ErrorCode::peer_timeout, {"rank 0 left before dispatch 2"}, [&] {
      me.exchange(1, 0, 0, nullptr);
      me.dispatch(2);
    });
  });
  EXPECT_LT(Clock::now() - start, 15s);
}

TEST(Failure, RanksThatMakeDifferentCallsAreToldSo) {
  test::run_rank_threads(2, [](auto comm) {
    Rank me(comm, OnPeerTimeout::fail);
    comm->set_deadline(20s);
    me.exchange(1, 0, 0, nullptr);
    const std::vector<Inputs> all = me.inputs(2);
    const Oracle oracle{me.dispatcher.config(), all};
    const ReceivedRows received = me.dispatch(2);
    test::combine(me.dispatcher, received, oracle, false);
    expect_error(ErrorCode::config_mismatch, {"made another call"}, [&] {
      if (me.rank == 0) me.dispatch(3);
      if (me.rank == 1) test::combine(me.dispatcher, received, oracle, false);
    });
  });
}

}  // namespace
}  // namespace mixlane
