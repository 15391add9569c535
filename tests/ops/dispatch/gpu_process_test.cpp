// Rank processes that share GPU memory. A program of its own: the test's process must not touch the GPU before it forks.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "core/error.hpp"
#include "ops/dispatch/gpu_rank.hpp"
#include "support/processes.hpp"

namespace mixlane {
namespace {

using namespace std::chrono_literals;
using test::Ended;
using test::GpuRank;
using test::Inputs;
using test::Oracle;

constexpr const char* kNoGpu = "no GPU here";

DispatcherConfig config_of(OnPeerTimeout on_timeout) {
  DispatcherConfig config;
  config.hidden = 64;
  config.num_topk = 4;
  config.num_experts = 10;
  config.max_tokens = 32;
  config.on_peer_timeout = on_timeout;
  return config;
}

void require(bool condition, const std::string& what) {
  if (!condition) fail(ErrorCode::internal, "{}", what);
}

std::shared_ptr<Communicator> join() {
  std::string why;
  require(gpu::num_devices(&why) > 0, kNoGpu);
  return make_process_group(10s);
}

void play(int num_ranks) {
  const auto comm = join();
  GpuRank rank(comm, config_of(OnPeerTimeout::fail));
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const std::vector<Inputs> inputs = test::make_all_inputs(seed, rank.dispatcher().config(), num_ranks);
    const Oracle oracle{rank.dispatcher().config(), inputs};
    const ReceivedRows received = rank.dispatch(inputs[comm->rank()]);
    require(test::received_is_right(received, oracle, comm->rank()), fmt::format("dispatch {} is wrong", seed));
    require(rank.combine(received, oracle, true) == oracle.output(comm->rank(), true),
            fmt::format("combine {} is wrong", seed));
  }
  require(rank.take_status().ok(), "a status is not ok");
}

bool no_gpu(const std::vector<Ended>& all) { return all[0].error.find(kNoGpu) != std::string::npos; }

TEST(ExchangeGpuProcesses, RowsCrossProcesses) {
  for (const int num_ranks : {2, 3}) {
    const std::vector<Ended> all = test::run_ranks(num_ranks, [&](int) { play(num_ranks); });
    if (no_gpu(all)) GTEST_SKIP() << kNoGpu;
    for (const Ended& ended : all) EXPECT_EQ(ended.exit_code, 0) << ended.error;
  }
}

// Between two calls, or while its kernel is sending.
void expect_the_others_to_go_on(bool in_mid_call) {
  const std::vector<Ended> all = test::run_ranks(3, [&](int index) {
    if (in_mid_call) setenv("MIXLANE_FAULT", "stall_5000:dispatch:1:3", 1);
    const auto comm = join();
    GpuRank rank(comm, config_of(OnPeerTimeout::mask));
    comm->barrier();
    rank.set_deadline(800ms);
    for (uint64_t seed = 0; seed < 6; ++seed) {
      const std::vector<Inputs> inputs = test::make_all_inputs(seed, rank.dispatcher().config(), 3);
      const Oracle oracle{rank.dispatcher().config(), inputs, seed < 2 ? 0u : 1u << 1};
      if (index == 1 && seed == 2) {
        std::thread([&] {
          if (in_mid_call) std::this_thread::sleep_for(200ms);
          kill(getpid(), SIGKILL);
        }).detach();
        if (!in_mid_call) std::this_thread::sleep_for(10s);
      }
      const ReceivedRows received = rank.dispatch(inputs[index]);
      const Status status = rank.take_status();
      require(status.code == (seed == 2 ? ErrorCode::peer_timeout : ErrorCode::ok), describe(status) + " is not expected");
      require(seed != 2 || status.peer == 1, "another rank is blamed");
      require(test::received_is_right(received, oracle, index), fmt::format("dispatch {} is wrong", seed));
      require(rank.combine(received, oracle, false) == oracle.output(index, false),
              fmt::format("combine {} is wrong", seed));
    }
  });
  if (no_gpu(all)) GTEST_SKIP() << kNoGpu;
  EXPECT_EQ(all[1].signal, SIGKILL);
  EXPECT_EQ(all[0].exit_code, 0) << all[0].error;
  EXPECT_EQ(all[2].exit_code, 0) << all[2].error;
}

TEST(ExchangeGpuProcesses, AKilledRankIsNamedAndTheOthersGoOn) { expect_the_others_to_go_on(false); }
TEST(ExchangeGpuProcesses, ARankKilledInMidCallIsNamedAndTheOthersGoOn) { expect_the_others_to_go_on(true); }

// More than the GPU has if memory outlived its group, or a peer's mapping of it.
TEST(ExchangeGpuProcesses, WindowsAreGivenBack) {
  const std::vector<Ended> all = test::run_ranks(2, [](int index) {
    const auto comm = join();
    const int64_t bytes = gpu::properties(0).memory_bytes / 16;
    for (int i = 0; i < 20; ++i) {
      const auto windows = comm->allocate(bytes, "windows", test::device_of_rank(index));
      require(windows->part(1 - index) != nullptr, "a part is not mapped");
    }
  });
  if (no_gpu(all)) GTEST_SKIP() << kNoGpu;
  for (const Ended& ended : all) EXPECT_EQ(ended.exit_code, 0) << ended.error;
}

TEST(ExchangeGpuProcesses, DifferentKindsOfMemoryAreRefused) {
  const std::vector<Ended> all = test::run_ranks(2, [](int index) {
    const auto comm = join();
    comm->allocate(4096, "windows", index == 0 ? test::device_of_rank(0) : Device{});
  });
  if (no_gpu(all)) GTEST_SKIP() << kNoGpu;
  for (const Ended& ended : all) {
    EXPECT_EQ(ended.exit_code, 1);
    EXPECT_NE(ended.error.find("4096 bytes, cpu"), std::string::npos) << ended.error;
  }
}

}  // namespace
}  // namespace mixlane
