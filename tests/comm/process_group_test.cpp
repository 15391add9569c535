#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstring>
#include <filesystem>
#include <thread>

#include "core/error.hpp"
#include "mixlane/comm.hpp"
#include "support/processes.hpp"

namespace mixlane {
namespace {

using namespace std::chrono_literals;
using test::Ended;
using test::run_ranks;

void check(bool condition, const char* what) {
  if (!condition) fail(ErrorCode::internal, "failed: {}", what);
}
#define CHECK_THAT(condition) check((condition), #condition)

void expect_all_fine(const std::vector<Ended>& all) {
  for (size_t r = 0; r < all.size(); ++r) {
    EXPECT_EQ(all[r].exit_code, 0) << "rank " << r << ": " << all[r].error;
    EXPECT_EQ(all[r].signal, 0) << "rank " << r;
  }
}

void expect_failed(const Ended& rank, ErrorCode code, const std::vector<std::string>& mentions) {
  EXPECT_EQ(rank.exit_code, 1);
  EXPECT_EQ(rank.error.rfind(name(code), 0), 0u) << rank.error;
  for (const std::string& text : mentions)
    EXPECT_NE(rank.error.find(text), std::string::npos) << text << " in: " << rank.error;
}

std::shared_ptr<Communicator> join(std::chrono::milliseconds deadline) {
  auto comm = make_process_group(deadline);
  comm->set_deadline(deadline);
  return comm;
}

TEST(ProcessGroup, GathersAndSharesMemory) {
  for (const int num_ranks : {1, 2, 5}) {
    expect_all_fine(run_ranks(num_ranks, [&](int rank) {
      const auto comm = join(10s);
      CHECK_THAT(comm->rank() == rank && comm->num_ranks() == num_ranks);
      for (int round = 0; round < 10; ++round) {
        // Larger than a socket's buffer, of different sizes, empty too.
        const std::string mine(static_cast<size_t>(rank) * 300'000 * (round % 2), static_cast<char>('a' + rank));
        const auto all = comm->all_gather(mine);
        for (int r = 0; r < num_ranks; ++r)
          CHECK_THAT(all[r] == std::string(static_cast<size_t>(r) * 300'000 * (round % 2), static_cast<char>('a' + r)));
      }
      for (int round = 0; round < 3; ++round) {
        const auto memory = comm->allocate(10'001, "test");
        CHECK_THAT(memory->bytes_per_rank() == 10'001);
        for (int i = 0; i < 10'001; ++i) CHECK_THAT(memory->part(rank)[i] == std::byte{0});
        comm->barrier();
        const int next = (rank + 1) % num_ranks;
        memory->part(next)[10'000] = static_cast<std::byte>(rank + 1);
        comm->barrier();
        CHECK_THAT(memory->part(rank)[10'000] == static_cast<std::byte>((rank + num_ranks - 1) % num_ranks + 1));
      }
    }));
  }
}

TEST(ProcessGroup, ASecondGroupBesideTheFirst) {
  expect_all_fine(run_ranks(3, [](int rank) {
    const auto first = join(10s);
    const auto second = join(10s);
    CHECK_THAT(second->all_gather(std::to_string(rank))[2] == "2");
    CHECK_THAT(first->all_gather(std::to_string(rank))[1] == "1");
  }));
}

TEST(ProcessGroup, MissingRanksAreNamedByAll) {
  const auto all = run_ranks(4, [](int rank) {
    if (rank == 1 || rank == 3) return;
    join(300ms);
  });
  for (const int r : {0, 2}) expect_failed(all[r], ErrorCode::peer_timeout, {"ranks 1, 3 of 4 did not come within 300 ms"});
  const auto without_first = run_ranks(2, [](int rank) {
    if (rank == 1) join(200ms);
  });
  expect_failed(without_first[1], ErrorCode::peer_timeout, {"rank 0", "did not come within 200 ms"});
}

TEST(ProcessGroup, ADeadRankIsNamedByAll) {
  const auto start = std::chrono::steady_clock::now();
  const auto all = run_ranks(4, [](int rank) {
    const auto comm = join(10s);
    comm->barrier();
    if (rank == 2) raise(SIGKILL);
    comm->barrier();
  });
  EXPECT_EQ(all[2].signal, SIGKILL);
  for (const int r : {0, 1, 3}) expect_failed(all[r], ErrorCode::peer_timeout, {"rank 2 went away"});
  EXPECT_LT(std::chrono::steady_clock::now() - start, 8s);
  const auto first_dead = run_ranks(3, [](int rank) {
    const auto comm = join(10s);
    if (rank == 0) raise(SIGKILL);
    comm->barrier();
  });
  for (const int r : {1, 2}) expect_failed(first_dead[r], ErrorCode::peer_timeout, {"rank 0 went away"});
}

TEST(ProcessGroup, ALateRankIsNamedByAll) {
  const auto all = run_ranks(3, [](int rank) {
    const auto comm = join(10s);
    comm->set_deadline(300ms);
    if (rank == 1) std::this_thread::sleep_for(700ms);
    comm->barrier();
  });
  for (const int r : {0, 2}) expect_failed(all[r], ErrorCode::peer_timeout, {"rank 1 did not answer within 300 ms"});
  EXPECT_EQ(all[1].exit_code, 1);
}

TEST(ProcessGroup, DisagreementIsNamed) {
  const auto all = run_ranks(3, [](int rank) { join(10s)->require_equal("capacity", rank == 1 ? "7" : "8"); });
  for (const Ended& rank : all)
    expect_failed(rank, ErrorCode::config_mismatch, {"capacity", "rank 1: '7'", "ranks 0, 2: '8'"});
  const auto sizes = run_ranks(2, [](int rank) {
    if (rank == 1) setenv("MIXLANE_NUM_RANKS", "3", 1);
    join(1s);
  });
  for (const Ended& rank : sizes) expect_failed(rank, ErrorCode::config_mismatch, {"3 ranks", "2 ranks"});
}

TEST(ProcessGroup, TheSameRankTwiceIsRefusedAndTheOthersGoOn) {
  const auto all = run_ranks(3, [](int rank) {
    if (rank == 2) setenv("MIXLANE_RANK", "1", 1);
    if (rank == 2) std::this_thread::sleep_for(100ms);
    join(500ms);
  });
  expect_failed(all[2], ErrorCode::config_mismatch, {"rank 1", "is there already"});
  for (const int r : {0, 1}) expect_failed(all[r], ErrorCode::peer_timeout, {"rank 2 of 3 did not come"});
}

TEST(ProcessGroup, ShortMemoryIsReportedByAll) {
  const auto too_much = run_ranks(3, [](int) { join(10s)->allocate(int64_t{1} << 50, "windows"); });
  for (const Ended& rank : too_much)
    expect_failed(rank, ErrorCode::out_of_memory, {"windows needs 3221225473 MiB", "MiB are free"});

  // A limit on file sizes on one rank alone.
  const auto limited = run_ranks(3, [](int rank) {
    const rlimit limit{1 << 20, 1 << 20};
    if (rank == 0) setrlimit(RLIMIT_FSIZE, &limit);
    join(10s)->allocate(4 << 20, "windows");
  });
  for (const Ended& rank : limited) expect_failed(rank, ErrorCode::out_of_memory, {"windows needs", "File too large"});
}

TEST(ProcessGroup, SpanningHostsIsRefused) {
  const auto all = run_ranks(1, [](int) {
    unsetenv("MIXLANE_RANK");
    setenv("RANK", "0", 1);
    setenv("WORLD_SIZE", "8", 1);
    setenv("LOCAL_WORLD_SIZE", "4", 1);
    setenv("MASTER_ADDR", "a", 1);
    setenv("MASTER_PORT", "1", 1);
    join(1s);
  });
  expect_failed(all[0], ErrorCode::unsupported, {"4 of 8 ranks are on this host"});
}

int64_t files_in_shm() {
  int64_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/dev/shm")) ++count;
  return count;
}

TEST(ProcessGroup, NothingRemainsOfKilledRanks) {
  const int64_t before = files_in_shm();
  const auto all = run_ranks(3, [](int) {
    const auto comm = join(10s);
    const auto memory = comm->allocate(1 << 20, "test");
    std::memset(memory->part(0), 1, 1 << 20);
    comm->barrier();
    raise(SIGKILL);
  });
  for (const Ended& rank : all) EXPECT_EQ(rank.signal, SIGKILL);
  EXPECT_EQ(files_in_shm(), before);
}

}  // namespace
}  // namespace mixlane
