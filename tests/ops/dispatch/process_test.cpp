// Rank processes that are killed or stall in the middle of a call.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdlib>

#include "core/error.hpp"
#include "ops/dispatch/exchange.hpp"
#include "support/processes.hpp"

namespace mixlane {
namespace {

using namespace std::chrono_literals;
using test::Ended;
using test::Inputs;
using test::Oracle;

constexpr auto kDeadline = 800ms;

DispatcherConfig config_of(OnPeerTimeout on_timeout) {
  DispatcherConfig config;
  config.hidden = 64;
  config.num_topk = 4;
  config.num_experts = 10;
  config.max_tokens = 32;
  config.on_peer_timeout = on_timeout;
  return config;
}

void require(bool condition, const char* what, int64_t call) {
  if (!condition) fail(ErrorCode::internal, "{} is wrong in call {}", what, call);
}

struct Script {
  OnPeerTimeout on_timeout = OnPeerTimeout::fail;
  std::string fault;
  int num_calls = 6;
  // With masking: the rank at fault, and its first calls of dispatch and of combine in which it is missing.
  uint64_t masked = 0;
  int64_t gone_in_dispatch = 1000;
  int64_t gone_in_combine = 1000;
};

void play(int rank, int num_ranks, const Script& script) {
  setenv("MIXLANE_FAULT", script.fault.c_str(), 1);
  const auto comm = make_process_group(10s);
  comm->set_deadline(kDeadline);
  Context context({.device = {}, .num_threads = 2});
  const DispatcherConfig config = config_of(script.on_timeout);
  Dispatcher dispatcher(context, comm, config);
  Status status;
  for (int64_t call = 1; call <= script.num_calls; ++call) {
    const std::vector<Inputs> inputs = test::make_all_inputs(static_cast<uint64_t>(call), config, num_ranks);
    const Oracle out{dispatcher.config(), inputs, call >= script.gone_in_dispatch ? script.masked : 0};
    const Oracle back{dispatcher.config(), inputs, call >= script.gone_in_combine ? script.masked : 0};
    const ReceivedRows received = dispatcher.dispatch(inputs[rank].dispatch_args(config, &status));
    require(test::received_is_right(received, out, rank), "what arrived", call);
    const auto output = test::combine(dispatcher, received, out, true, &status);
    require(output == back.output(rank, true), "the output", call);
  }
  if (script.masked == 0) {
    throw_if_failed(status);
    return;
  }
  require(status.code == ErrorCode::peer_timeout && script.masked == uint64_t{1} << status.peer && status.failures == 1,
          "the status", 0);
  require(dispatcher.masked_ranks() == std::vector<int>{status.peer}, "the set of masked ranks", 0);
}

std::vector<Ended> run(int num_ranks, const Script& script) {
  return test::run_ranks(num_ranks, [&](int rank) { play(rank, num_ranks, script); });
}

TEST(RankProcesses, Exchange) {
  for (const int num_ranks : {1, 3, 4})
    for (const Ended& rank : run(num_ranks, {})) EXPECT_EQ(rank.exit_code, 0) << rank.error;
}

TEST(RankProcesses, AKilledRankIsNamedByTheOthersInTime) {
  const int64_t before = test::files_in_shared_memory();
  for (const char* fault : {"kill:dispatch:1:3", "kill:combine:2:2", "kill:dispatch:0:1"}) {
    const int gone = fault[fault[5] == 'd' ? 14 : 13] - '0';
    const auto start = std::chrono::steady_clock::now();
    const std::vector<Ended> all = run(4, {.fault = fault});
    EXPECT_LT(std::chrono::steady_clock::now() - start, 3 * kDeadline);
    for (int r = 0; r < 4; ++r) {
      if (r == gone) {
        EXPECT_EQ(all[r].signal, SIGKILL);
        continue;
      }
      EXPECT_EQ(all[r].exit_code, 1);
      EXPECT_EQ(all[r].error.rfind("peer_timeout", 0), 0u) << all[r].error;
      EXPECT_NE(all[r].error.find("no answer from rank " + std::to_string(gone)), std::string::npos) << all[r].error;
    }
  }
  EXPECT_EQ(test::files_in_shared_memory(), before);
}

TEST(RankProcesses, WithMaskingTheOthersGoOnWithoutAKilledRank) {
  const Script in_dispatch{.on_timeout = OnPeerTimeout::mask,
                           .fault = "kill:dispatch:1:3",
                           .masked = 0b010,
                           .gone_in_dispatch = 3,
                           .gone_in_combine = 3};
  const Script in_combine{.on_timeout = OnPeerTimeout::mask,
                          .fault = "kill:combine:1:2",
                          .masked = 0b010,
                          .gone_in_dispatch = 3,
                          .gone_in_combine = 2};
  for (const Script& script : {in_dispatch, in_combine}) {
    const std::vector<Ended> all = run(4, script);
    EXPECT_EQ(all[1].signal, SIGKILL);
    for (const int r : {0, 2, 3}) EXPECT_EQ(all[r].exit_code, 0) << script.fault << ": " << all[r].error;
  }
}

TEST(RankProcesses, AStalledRankFindsItselfMasked) {
  const std::vector<Ended> all = run(3, {.on_timeout = OnPeerTimeout::mask,
                                         .fault = "stall_2500:dispatch:2:2",
                                         .masked = 0b100,
                                         .gone_in_dispatch = 2,
                                         .gone_in_combine = 2});
  for (const int r : {0, 1}) EXPECT_EQ(all[r].exit_code, 0) << all[r].error;
  EXPECT_EQ(all[2].exit_code, 1);
  EXPECT_EQ(all[2].error.rfind("rank_masked", 0), 0u) << all[2].error;
}

TEST(RankProcesses, AShortStallIsNoFailure) {
  for (const Ended& rank : run(3, {.fault = "stall_100:combine:1:2"})) EXPECT_EQ(rank.exit_code, 0) << rank.error;
}

TEST(RankProcesses, ABadFaultIsNamed) {
  const std::vector<Ended> all = run(1, {.fault = "kill:me"});
  EXPECT_EQ(all[0].error.rfind("invalid_argument: MIXLANE_FAULT='kill:me'", 0), 0u) << all[0].error;
}

TEST(RankProcesses, WindowsThatDoNotFitAreRefusedByAll) {
  const std::vector<Ended> all = test::run_ranks(2, [](int) {
    const auto comm = make_process_group(10s);
    Context context({.device = {}, .num_threads = 1});
    DispatcherConfig config = config_of(OnPeerTimeout::fail);
    config.hidden = 1 << 20;
    config.max_tokens = 1 << 20;
    Dispatcher dispatcher(context, comm, config);
  });
  for (const Ended& rank : all) {
    EXPECT_EQ(rank.error.rfind("out_of_memory: window memory of dispatch and combine needs", 0), 0u) << rank.error;
    EXPECT_NE(rank.error.find("MiB are free"), std::string::npos) << rank.error;
  }
}

}  // namespace
}  // namespace mixlane
