#include <gtest/gtest.h>

#include <thread>

#include "mixlane/comm.hpp"
#include "support/errors.hpp"

namespace mixlane {
namespace {

using namespace std::chrono_literals;
using test::expect_error;

void run_threads(int num_ranks, const std::function<void(Communicator&)>& body) {
  auto group = make_thread_group(num_ranks);
  std::vector<std::thread> threads;
  for (auto& member : group) threads.emplace_back([&body, mine = std::move(member)] { body(*mine); });
  group.clear();
  for (std::thread& thread : threads) thread.join();
}

TEST(ThreadGroup, GathersInRankOrderManyTimes) {
  for (const int num_ranks : {1, 2, 7, 64}) {
    run_threads(num_ranks, [&](Communicator& comm) {
      for (int round = 0; round < 20; ++round) {
        const auto all = comm.all_gather(std::to_string(comm.rank() * 100 + round));
        ASSERT_EQ(all.size(), static_cast<size_t>(num_ranks));
        for (int r = 0; r < num_ranks; ++r) EXPECT_EQ(all[r], std::to_string(r * 100 + round));
      }
    });
  }
}

TEST(ThreadGroup, MemoryIsZeroedSharedAndSurvivesTheGroup) {
  run_threads(3, [](Communicator& comm) {
    const auto memory = comm.allocate(5000, "test");
    EXPECT_EQ(memory->bytes_per_rank(), 5000);
    for (int i = 0; i < 5000; ++i) ASSERT_EQ(memory->part(comm.rank())[i], std::byte{0});
    comm.barrier();
    const int next = (comm.rank() + 1) % 3;
    memory->part(next)[4999] = static_cast<std::byte>(comm.rank() + 1);
    comm.barrier();
    EXPECT_EQ(memory->part(comm.rank())[4999], static_cast<std::byte>((comm.rank() + 2) % 3 + 1));
  });
}

TEST(ThreadGroup, DifferencesAreNamed) {
  run_threads(3, [](Communicator& comm) {
    comm.require_equal("hidden", "64");
    expect_error(ErrorCode::config_mismatch, {"hidden", "ranks 0, 2: '64'", "rank 1: '128'"},
                 [&] { comm.require_equal("hidden", comm.rank() == 1 ? "128" : "64"); });
    expect_error(ErrorCode::config_mismatch, {"windows", "'100 bytes, cpu'", "'200 bytes, cpu'"},
                 [&] { comm.allocate(comm.rank() == 0 ? 100 : 200, "windows"); });
    expect_error(ErrorCode::out_of_memory, {"windows needs", "MiB are free"},
                 [&] { comm.allocate(int64_t{1} << 50, "windows"); });
    expect_error(ErrorCode::invalid_argument, {"-1 bytes"}, [&] { comm.allocate(-1, "windows"); });
    comm.barrier();
  });
}

TEST(ThreadGroup, ALateRankIsNamedAndTheGroupStaysBroken) {
  run_threads(3, [](Communicator& comm) {
    comm.set_deadline(200ms);
    if (comm.rank() == 1) std::this_thread::sleep_for(600ms);
    for (int again = 0; again < 2; ++again)
      expect_error(ErrorCode::peer_timeout, {"rank 1 did not answer within 200 ms"}, [&] { comm.barrier(); });
  });
}

TEST(ThreadGroup, ARankThatLeftIsNamedAtOnce) {
  const auto start = std::chrono::steady_clock::now();
  run_threads(3, [](Communicator& comm) {
    if (comm.rank() == 2) return;
    expect_error(ErrorCode::peer_timeout, {"rank 2 went away"}, [&] { comm.barrier(); });
    std::this_thread::sleep_for(20ms);  // the other must see who left first
  });
  EXPECT_LT(std::chrono::steady_clock::now() - start, 10s);
}

}  // namespace
}  // namespace mixlane
