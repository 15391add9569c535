// Choosing among candidates whose times are made up, and the program's subcommand.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "io/tuned.hpp"
#include "program.hpp"
#include "support/files.hpp"
#include "tune/race.hpp"
#include "tune/regret.hpp"

namespace mixlane::bench {
namespace {

// Times with noise, relative to them.
class Clock {
 public:
  Clock(std::vector<double> us, double noise) : us_(std::move(us)), noise_(noise) {}
  double operator()(int candidate) { return us_[candidate] * (1 + noise_ * std::normal_distribution<double>()(rng_)); }

 private:
  std::vector<double> us_;
  double noise_;
  std::mt19937 rng_{7};
};

TEST(Race, FasterOneWins) {
  Clock clock({5.0, 4.0, 6.0}, 0.005);
  const RaceResult result = race(3, std::ref(clock));
  EXPECT_EQ(result.winner, 1);
  EXPECT_NEAR(result.median_us[1], 4.0, 0.05);
}

TEST(Race, LeastRegretIsTheOneThatNeverLosesMuch) {
  const auto at = [](std::vector<double> us) { return RaceResult{0, std::move(us), {}}; };
  // The second is ahead by a little at one size and far behind at the other.
  const std::vector<RaceResult> races{at({3.54, 3.50, 9.0}), at({3.30, 3.51, 8.9})};
  EXPECT_EQ(least_regret(races, 0.01), 0);
  const std::vector<RaceResult> other{at({4.0, 3.50, 9.0}), at({3.45, 3.51, 8.9})};
  EXPECT_EQ(least_regret(other, 0.01), 1);
  // Less than the margin between them: the simpler one.
  const std::vector<RaceResult> tied{at({3.02, 3.0}), at({3.0, 3.015})};
  EXPECT_EQ(least_regret(tied, 0.01), 0);
  EXPECT_EQ(least_regret(tied, 0.0), 1);
}

TEST(Race, WithinTheMarginTheSimplerOneStays) {
  Clock clock({5.0, 4.97}, 0.0);
  EXPECT_EQ(race(2, std::ref(clock)).winner, 0);
  Clock clear({5.0, 4.90}, 0.0);
  EXPECT_EQ(race(2, std::ref(clear)).winner, 1);
  EXPECT_EQ(race(2, std::ref(clear), {.margin = 0.05}).winner, 0);
}

TEST(Race, WithinTheNoiseTheSimplerOneStays) {
  // Slower half the time: no order of so noisy samples proves the second one faster.
  int round = 0;
  const auto sample = [&](int candidate) {
    if (candidate == 0) return 5.0;
    return ++round % 2 == 0 ? 4.0 : 5.5;
  };
  EXPECT_EQ(race(2, sample).winner, 0);
}

TEST(Race, RoundsTakeTurnsAndTheHopelessDropOut) {
  std::vector<int> order;
  const std::vector<double> us{2.0, 9.0, 2.5};
  const RaceResult result = race(3,
                                 [&](int candidate) {
                                   order.push_back(candidate);
                                   return us[candidate];
                                 },
                                 {.rounds = 6, .trial_rounds = 2, .far_behind = 5});
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 2, 1, 0, 0, 2, 2, 0, 0, 2, 2, 0}));
  EXPECT_EQ(result.samples_us[0].size(), 6u);
  EXPECT_EQ(result.samples_us[1].size(), 2u);
  EXPECT_EQ(result.samples_us[2].size(), 6u);
  EXPECT_EQ(result.median_us[1], 9.0);
  EXPECT_EQ(result.winner, 0);
}

TEST(Race, OneRoundIsEnoughForThoseFarBehind) {
  const std::vector<double> us{2.0, 9.0, 3.5};
  const RaceResult result = race(3, [&](int candidate) { return us[candidate]; });
  EXPECT_EQ(result.samples_us[0].size(), 10u);
  EXPECT_EQ(result.samples_us[1].size(), 1u);
  EXPECT_EQ(result.samples_us[2].size(), 3u);
}

TEST(Race, DriftOfTheMachineIsShared) {
  // Clocks that fall by a third during the race: the ratios stay.
  double drift = 1;
  const RaceResult result = race(2, [&](int candidate) {
    drift *= 1.02;
    return drift * (candidate == 0 ? 5.0 : 4.7);
  });
  EXPECT_EQ(result.winner, 1);
}

// Races of two, whose second one seems to be the faster by so much in the first race and in the longer one.
Regret regret_of_races(double first, double longer, int* num_races) {
  *num_races = 0;
  const std::vector<std::string> ids{"a", "b"};
  const auto run = [&](const RaceOptions& options) {
    Clock clock({1 + (++*num_races == 1 ? first : longer), 1.0}, 0.002);
    return race(2, std::ref(clock), options);
  };
  return measure_regret(ids, "a", "b", run, {});
}

TEST(Regret, APointThatLooksLateIsTimedAgain) {
  int num_races = 0;
  const Regret fine = regret_of_races(0.01, 0, &num_races);
  EXPECT_EQ(num_races, 1);
  EXPECT_EQ(fine.num_rounds, 10);
  EXPECT_NEAR(fine.regret, 0.01, 0.005);
  EXPECT_EQ(fine.model_regret, 0);
  const Regret recovered = regret_of_races(0.06, 0.02, &num_races);
  EXPECT_EQ(num_races, 2);
  EXPECT_EQ(recovered.num_rounds, 60);
  EXPECT_NEAR(recovered.regret, 0.02, 0.003);
  const Regret late = regret_of_races(0.04, 0.07, &num_races);
  EXPECT_EQ(num_races, 2) << "near the limit is looked at again as well";
  EXPECT_NEAR(late.regret, 0.07, 0.003);
  EXPECT_LE(late.low, late.regret);
  EXPECT_GE(late.high, late.regret);
  EXPECT_GT(late.low, 0.06);
}

TEST(Regret, TheTableHasTheIntervalOfTheWorstPoints) {
  int num_races = 0;
  const std::vector<RegretCell> cells{{"row", "point", regret_of_races(0.07, 0.07, &num_races)}};
  const std::string text = regret_table("shape", cells);
  EXPECT_NE(text.find("more than 5 % behind the best variant at 1 of 1 points"), std::string::npos) << text;
  EXPECT_NE(text.find("| point | a | 7."), std::string::npos) << text;
  EXPECT_NE(text.find(" %, 60 | a 1.07, b 1.00 |"), std::string::npos) << text;
}

TEST(TuneCommand, ListShowsTheTablesOfTheEnvironment) {
  const mixlane::test::TempFolder folder;
  const TunedTable table{.file = "",
                         .stage = "align",
                         .machine = {"sm_77", 9},
                         .fields = {"tokens"},
                         .runs = {{"2026-01-01T00:00:00Z", "A GPU", "1.2", "abc", "mixlane tune --stage align"}},
                         .entries = {{.key = {int64_t{1}}, .choice = "align.none", .run = 0, .measured_us = {}}}};
  mixlane::test::write_file(folder / "mine.json", tuned_json(table));
  test::Program program({MIXLANE_PROGRAM, "tune", "--list"}, {{"MIXLANE_TUNED", folder.path().string()}});
  program.wait();
  EXPECT_EQ(program.exit_code, 0) << program.err;
  EXPECT_NE(program.out.find("mine.json: align on sm_77 with 9 multiprocessors, 1 entries"), std::string::npos)
      << program.out;
  EXPECT_NE(program.out.find("mixlane tune --stage align"), std::string::npos);
}

TEST(TuneCommand, UnknownStageIsWrongUsage) {
  test::Program program({MIXLANE_PROGRAM, "tune", "--stage", "magic"});
  program.wait();
  EXPECT_EQ(program.exit_code, 2);
}

}  // namespace
}  // namespace mixlane::bench
