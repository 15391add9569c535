#include "measure/gate.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "measure/clock.hpp"
#include "measure/sampler.hpp"
#include "support/errors.hpp"
#include "support/rank_threads.hpp"

namespace mixlane::bench {
namespace {

using namespace std::chrono_literals;

using mixlane::test::run_ranks;

TEST(Gate, OpensAfterTheLastRankWithOneStampForAll) {
  constexpr int kRanks = 3, kPasses = 200;
  std::vector<std::vector<int64_t>> opened(kRanks), arrived(kRanks);
  run_ranks(kRanks, [&](auto comm) {
    Gate gate(comm, 64, OnPeerTimeout::fail);
    for (int i = 0; i < kPasses; ++i) {
      if (i % 7 == comm->rank()) std::this_thread::sleep_for(200us);
      arrived[comm->rank()].push_back(now_ns());
      opened[comm->rank()].push_back(gate.pass());
      EXPECT_GE(now_ns(), opened[comm->rank()].back());
    }
  });
  EXPECT_EQ(opened[0], opened[1]);
  EXPECT_EQ(opened[0], opened[2]);
  for (int i = 0; i < kPasses; ++i)
    for (int r = 0; r < kRanks; ++r) EXPECT_GE(opened[0][i], arrived[r][i]) << "pass " << i << " rank " << r;
}

TEST(Gate, GathersValuesOfDifferentLengths) {
  run_ranks(4, [](auto comm) {
    Gate gate(comm, 256, OnPeerTimeout::fail);
    for (int round = 0; round < 20; ++round) {
      std::vector<int64_t> own(static_cast<size_t>(comm->rank()), 100 * round + comm->rank());
      const auto all = gate.all_gather(std::span<const int64_t>(own));
      for (int r = 0; r < 4; ++r) EXPECT_EQ(all[r], std::vector<int64_t>(static_cast<size_t>(r), 100 * round + r));
    }
  });
}

TEST(Gate, AMissingRankIsNamedAtTheDeadline) {
  run_ranks(3, [](auto comm) {
    comm->set_deadline(200ms);
    Gate gate(comm, 64, OnPeerTimeout::fail);
    gate.pass();
    if (comm->rank() == 1) return;
    mixlane::test::expect_error(ErrorCode::peer_timeout, {"rank 1 ", "200 ms"}, [&] { gate.pass(); });
  });
}

TEST(Gate, AMissingRankIsLeftOutWithMasking) {
  run_ranks(3, [](auto comm) {
    comm->set_deadline(200ms);
    Gate gate(comm, 64, OnPeerTimeout::mask);
    gate.pass();
    if (comm->rank() == 2) return;
    const int64_t value = comm->rank();
    const auto all = gate.all_gather(std::span<const int64_t>(&value, 1));
    EXPECT_EQ(all, (std::vector<std::vector<int64_t>>{{0}, {1}, {}}));
    EXPECT_EQ(gate.left_out(), std::vector<int>{2});
  });
}

TEST(Sampler, ASampleIsTheSlowestRanksTime) {
  run_ranks(2, [](auto comm) {
    Gate gate(comm, Sampler::mailbox_bytes(), OnPeerTimeout::fail);
    SamplePlan plan;
    plan.min_time_s = 0;
    plan.max_time_s = 0.2;
    plan.target = 1e-6;  // never reached
    plan.min_samples = 12;
    Sampler sampler(gate, plan);
    const SampleSet set = sampler.measure([&](Stamps& stamps) {
      stamps.begin_us[static_cast<int>(Stage::dispatch)] = comm->rank() == 0 ? 10 : 500;
      std::this_thread::sleep_for(comm->rank() == 0 ? 1ms : 3ms);
      stamps.stage_end_us[static_cast<int>(Stage::dispatch)] = 900;
    });
    if (comm->rank() != 0) {
      EXPECT_EQ(set.num_samples(), 0);
      return;
    }
    EXPECT_GE(set.num_samples(), 12);
    EXPECT_FALSE(set.converged);
    for (const double us : layer_samples(set)) EXPECT_GE(us, 3000);
    EXPECT_GE(rank_medians(set)[0], 1000);
    EXPECT_LT(rank_medians(set)[0], rank_medians(set)[1]);
    // Rank 0 is the slowest at dispatch: 890 us, of which it waits 490 for rank 1 to begin.
    for (const double us : stage_samples(set, Stage::dispatch)) EXPECT_DOUBLE_EQ(us, 890);
    EXPECT_DOUBLE_EQ(wait_us(set, Stage::dispatch), 490);
    EXPECT_DOUBLE_EQ(stage_samples(set, Stage::combine)[0], 0);
  });
}

TEST(Sampler, StopsWhenTheMedianIsKnown) {
  run_ranks(2, [](auto comm) {
    Gate gate(comm, Sampler::mailbox_bytes(), OnPeerTimeout::fail);
    SamplePlan plan;
    plan.min_time_s = 0;
    plan.max_time_s = 20;
    plan.target = 0.9;
    Sampler sampler(gate, plan);
    const SampleSet set = sampler.measure([](Stamps&) { std::this_thread::sleep_for(1ms); });
    if (comm->rank() != 0) return;
    EXPECT_TRUE(set.converged);
    EXPECT_LT(set.num_samples(), 1000);
  });
}

}  // namespace
}  // namespace mixlane::bench
