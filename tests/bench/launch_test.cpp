// Ranks that die, are interrupted, or are started by somebody else.
#include <gtest/gtest.h>

#include <chrono>

#include "program.hpp"
#include "results/record.hpp"

namespace mixlane::bench::test {
namespace {

using Strings = std::vector<std::string>;
using Clock = std::chrono::steady_clock;

class LaunchTest : public BenchTest {
 protected:
  void expect_death_reported(const char* stage) {
    const auto begin = Clock::now();
    Program program(command({"--ranks", "3", "--tokens", "4,8", "--deadline", "1"}),
                    {{"MIXLANE_FAULT", std::string("kill:") + stage + ":1:9"}});
    program.wait();
    EXPECT_EQ(program.exit_code, 1) << program.err;
    expect_mentions(program.err, {"rank 1", "signal 9"});
    // Rank 0 itself says who is missing, not only the launcher.
    EXPECT_NE(program.err.find("mixlane: peer_timeout: "), std::string::npos) << program.err;
    EXPECT_LT(Clock::now() - begin, std::chrono::seconds(20));
    EXPECT_EQ(left_behind(), 0);
  }

  // Until the first cell is stored.
  bool first_record_is_there() const {
    return eventually([this] { return !results().empty(); });
  }
};

TEST_F(LaunchTest, ARankKilledInDispatchIsNamed) { expect_death_reported("dispatch"); }
TEST_F(LaunchTest, ARankKilledInCombineIsNamed) { expect_death_reported("combine"); }

TEST_F(LaunchTest, WithMaskTheOthersGoOn) {
  Program program(command({"--ranks", "3", "--tokens", "4,8", "--deadline", "1", "--mask"}),
                  {{"MIXLANE_FAULT", "kill:dispatch:1:9"}});
  program.wait();
  EXPECT_EQ(program.exit_code, 0) << program.err;
  expect_mentions(program.err, {"rank 1", "signal 9", "--mask"});
  const ResultFile file = read_result_file(results().at(0));
  EXPECT_TRUE(file.complete);
  EXPECT_EQ(file.records.size(), 2u);
  EXPECT_EQ(file.environment.at("masked_ranks"), "1");
  EXPECT_EQ(left_behind(), 0);
}

TEST_F(LaunchTest, InterruptingLeavesNoProcess) {
  for (const int signal : {SIGINT, SIGTERM}) {
    Program program(
        command({"--ranks", "3", "--tokens", "4", "--target", "0.0001", "--min-time", "30", "--max-time", "30"}));
    ASSERT_TRUE(eventually([this] { return std::filesystem::exists(runs()); }));
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    kill(program.pid(), signal);
    program.wait();
    EXPECT_EQ(program.exit_code, 128 + signal) << program.err;
    EXPECT_EQ(left_behind(), 0);
    std::filesystem::remove_all(runs());
  }
}

TEST_F(LaunchTest, RanksEndWithALauncherThatIsKilled) {
  Program program(command({"--ranks", "3", "--tokens", "4", "--target", "0.0001", "--min-time", "30", "--max-time", "30"}));
  ASSERT_TRUE(eventually([this] { return std::filesystem::exists(runs()); }));
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  kill(program.pid(), SIGKILL);
  program.wait();
  EXPECT_EQ(left_behind(), 0);
}

TEST_F(LaunchTest, TheSameCommandGoesOnWithAnInterruptedSweep) {
  const Strings arguments = command({"--ranks", "2", "--tokens", "1,2,3,4", "--min-time", "0.3", "--max-time", "0.4"});
  {
    Program program(arguments);
    ASSERT_TRUE(first_record_is_there());
    kill(program.pid(), SIGINT);
    program.wait();
    ASSERT_EQ(program.exit_code, 130) << program.err;
  }
  const ResultFile before = read_result_file(results().at(0));
  ASSERT_FALSE(before.complete);
  const size_t done = before.records.size();
  ASSERT_LT(done, 4u);

  Program again(arguments);
  again.wait();
  ASSERT_EQ(again.exit_code, 0) << again.err;
  expect_mentions(again.out,
                  {"going on with the interrupted sweep " + before.stamp, std::to_string(done) + " cells are done"});
  ASSERT_EQ(results().size(), 1u);
  const ResultFile after = read_result_file(results()[0]);
  EXPECT_TRUE(after.complete);
  ASSERT_EQ(after.records.size(), 4u);
  for (size_t i = 0; i < done; ++i)
    EXPECT_EQ(after.records[i].stages.back().samples_us, before.records[i].stages.back().samples_us);

  // A complete sweep is not gone on with.
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  Program fresh(arguments);
  fresh.wait();
  EXPECT_EQ(results().size(), 2u);
}

TEST_F(LaunchTest, TakesRanksFromTorchrunsVariables) {
  std::vector<std::unique_ptr<Program>> ranks;
  for (int rank = 0; rank < 2; ++rank)
    ranks.push_back(std::make_unique<Program>(command({"--tokens", "3"}),
                                              Variables{{"RANK", std::to_string(rank)},
                                                        {"WORLD_SIZE", "2"},
                                                        {"LOCAL_RANK", std::to_string(rank)},
                                                        {"LOCAL_WORLD_SIZE", "2"},
                                                        {"MASTER_ADDR", "127.0.0.1"},
                                                        {"MASTER_PORT", std::to_string(20000 + getpid() % 20000)}}));
  for (const auto& rank : ranks) {
    rank->wait();
    EXPECT_EQ(rank->exit_code, 0) << rank->err;
  }
  const ResultFile file = read_result_file(results().at(0));
  EXPECT_EQ(file.ranks, 2);
  EXPECT_EQ(file.environment.at("launcher"), "torchrun");
  EXPECT_EQ(ranks[1]->out, "");
}

TEST_F(LaunchTest, RanksThatContradictTheLauncherAreRefused) {
  Program program(command({"--ranks", "3"}), {{"RANK", "0"},
                                              {"WORLD_SIZE", "2"},
                                              {"LOCAL_RANK", "0"},
                                              {"LOCAL_WORLD_SIZE", "2"},
                                              {"MASTER_ADDR", "127.0.0.1"},
                                              {"MASTER_PORT", "23456"}});
  program.wait();
  EXPECT_EQ(program.exit_code, 2);
  expect_mentions(program.err, {"--ranks 3", "torchrun", "2 ranks"});
}

TEST_F(LaunchTest, TakesRanksFromMpirun) {
  Strings words{"mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "3"};
  Program probe({"mpirun", "--version"});
  probe.wait();
  if (probe.exit_code != 0)
    GTEST_SKIP() << "mpirun is not installed (apt install openmpi-bin): the MPI launch is not tested";
  const Strings program_words = command({"--tokens", "3"});
  words.insert(words.end(), program_words.begin(), program_words.end());
  Program program(words);
  program.wait();
  ASSERT_EQ(program.exit_code, 0) << program.err;
  const ResultFile file = read_result_file(results().at(0));
  EXPECT_EQ(file.ranks, 3);
  EXPECT_EQ(file.environment.at("launcher"), "openmpi");
}

}  // namespace
}  // namespace mixlane::bench::test
