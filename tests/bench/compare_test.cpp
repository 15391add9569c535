#include "compare/compare.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "command.hpp"
#include "results/files.hpp"
#include "sample_results.hpp"

namespace mixlane::bench {
namespace {

namespace fs = std::filesystem;
using test::noisy_samples;
using test::sample_file;

// A file whose "layer" and "dispatch" take `layer_us` and `dispatch_us` on average.
ResultFile file_of(double dispatch_us, double layer_us, uint64_t seed, double noise = 0.01) {
  mixlane::test::Rng rng(seed);
  ResultFile file = sample_file();
  file.records.pop_back();
  file.records[0].stages = {test::sample_stage("dispatch", "dispatch.cpu", noisy_samples(rng, 100, dispatch_us, noise)),
                            test::sample_stage("layer", "", noisy_samples(rng, 100, layer_us, noise))};
  return file;
}

std::vector<Verdict> verdicts(const CompareResult& result) {
  std::vector<Verdict> all;
  for (const CompareRow& row : result.rows) all.push_back(row.comparison.verdict);
  return all;
}

TEST(Compare, FindsWhatChanged) {
  const auto result = compare_results({file_of(40, 100, 1)}, {file_of(36, 100, 2)}, 0.02);
  EXPECT_EQ(verdicts(result), (std::vector<Verdict>{Verdict::fast, Verdict::same}));
  EXPECT_EQ(result.rows[0].stage, "dispatch");
  EXPECT_NEAR(result.rows[0].a_us, 40, 0.3);
  EXPECT_NEAR(result.rows[0].b_us, 36, 0.3);
  EXPECT_NEAR(result.rows[0].comparison.ratio, 0.9, 0.01);
  EXPECT_EQ(compare_exit_code(result, FailOn::slow), kExitOk);
  EXPECT_EQ(compare_exit_code(result, FailOn::ambiguous), kExitOk);
}

TEST(Compare, ARegressionEndsWithOne) {
  const auto result = compare_results({file_of(40, 100, 1)}, {file_of(44, 100, 2)}, 0.02);
  EXPECT_EQ(verdicts(result), (std::vector<Verdict>{Verdict::slow, Verdict::same}));
  EXPECT_EQ(compare_exit_code(result, FailOn::slow), kExitFailed);
  EXPECT_EQ(compare_exit_code(result, FailOn::none), kExitOk);
  const std::string text = to_text(result);
  for (const char* part : {"SLOW", "SAME", " 1 SAME 1 SLOW (threshold 2 %)\n", "dispatch", "40.1 -> 43.9", "+9.6 %"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " missing in\n" << text;
}

TEST(Compare, NoiseIsAmbiguous) {
  const auto result = compare_results({file_of(40, 100, 1, 0.5)}, {file_of(41, 102, 2, 0.5)}, 0.02);
  EXPECT_EQ(verdicts(result), (std::vector<Verdict>{Verdict::ambiguous, Verdict::ambiguous}));
  EXPECT_EQ(compare_exit_code(result, FailOn::slow), kExitOk);
  EXPECT_EQ(compare_exit_code(result, FailOn::ambiguous), kExitFailed);
}

TEST(Compare, OtherConditionsAreNamedNotJudged) {
  const ResultFile a = file_of(40, 100, 1);
  const auto expect_reason = [&](const std::function<void(ResultFile&)>& change, const std::string& reason) {
    ResultFile b = file_of(40, 100, 2);
    change(b);
    const auto result = compare_results({a}, {b}, 0.02);
    ASSERT_EQ(verdicts(result), std::vector<Verdict>{Verdict::not_comparable});
    EXPECT_EQ(result.rows[0].stage, "*");
    EXPECT_EQ(result.rows[0].reason, reason);
    EXPECT_EQ(compare_exit_code(result, FailOn::slow), kExitNotComparable);
    EXPECT_NE(to_text(result).find("???? " + reason), std::string::npos);
  };
  expect_reason([](ResultFile& b) { b.device = "cuda"; }, "device differs (cpu and cuda)");
  expect_reason([](ResultFile& b) { b.environment["cpu"] = "Other"; }, "processor differs (Some CPU and Other)");
  expect_reason([](ResultFile& b) { b.ranks = 4; }, "ranks differs (2 and 4)");
  expect_reason([](ResultFile& b) { b.records[0].mode = "graph"; }, "mode differs (eager and graph)");
  expect_reason([](ResultFile& b) { b.records[0].cache = "cold"; }, "cache differs (hot and cold)");
}

TEST(Compare, RowsOfOneSideOnly) {
  ResultFile a = file_of(40, 100, 1), b = file_of(40, 100, 2);
  a.records.push_back(test::sample_record(64, "balanced"));
  b.records.push_back(test::sample_record(256, "balanced"));
  b.records[0].stages.push_back(test::sample_stage("extra", "", {1, 2}));
  a.records[0].stages[0].samples_us.clear();
  const auto result = compare_results({a}, {b}, 0.02);
  ASSERT_EQ(result.rows.size(), 5u);
  EXPECT_EQ(result.rows[0].reason, "A stored no samples");
  EXPECT_EQ(result.rows[1].comparison.verdict, Verdict::same);
  EXPECT_EQ(result.rows[2].stage + ": " + result.rows[2].reason, "extra: only in B");
  EXPECT_EQ(result.rows[3].reason, "only in A");
  EXPECT_EQ(result.rows[3].cell.tokens, 64);
  EXPECT_EQ(result.rows[4].reason, "only in B");
  EXPECT_EQ(compare_exit_code(result, FailOn::slow), kExitNotComparable);
  EXPECT_EQ(compare_exit_code(compare_results({}, {}, 0.02), FailOn::slow), kExitNotComparable);
}

TEST(Compare, AWrongResultIsARegressionHoweverFast) {
  ResultFile a = file_of(40, 100, 1), b = file_of(4, 10, 2);
  b.records[0].correctness.passed = false;
  b.records[0].correctness.rel_error = 0.5;
  auto result = compare_results({a}, {b}, 0.02);
  ASSERT_EQ(result.rows.size(), 1u);
  EXPECT_EQ(result.rows[0].reason, "B failed its correctness check (error 5.00e-01, allowed 1.00e-02)");
  EXPECT_EQ(compare_exit_code(result, FailOn::slow), kExitFailed);
  a.records[0].correctness.passed = false;
  result = compare_results({a}, {b}, 0.02);
  EXPECT_EQ(compare_exit_code(result, FailOn::slow), kExitNotComparable);
}

TEST(Compare, TheNewestRunOfACellCounts) {
  ResultFile old = file_of(80, 200, 3), recent = file_of(40, 100, 1);
  recent.stamp = "2027-01-01T00-00-00";
  recent.environment["commit"] = "another";
  const auto result = compare_results({recent, old}, {file_of(40, 100, 2)}, 0.02);
  EXPECT_EQ(verdicts(result), (std::vector<Verdict>{Verdict::same, Verdict::same}));
}

TEST(Compare, RepeatsOfOneCommitTellHowMuchRunsDiffer) {
  // Steady runs, each at a speed of its own: 20 % apart, while B's only run lies 15 % above A's mean.
  const std::vector<ResultFile> a = {file_of(40, 100, 1), file_of(48, 120, 2), file_of(44, 110, 3)};
  const auto result = compare_results(a, {file_of(50.6, 126.5, 4)}, 0.02);
  EXPECT_EQ(verdicts(result), (std::vector<Verdict>{Verdict::ambiguous, Verdict::ambiguous}));
  EXPECT_NEAR(result.rows[1].a_us, 110, 1);
  EXPECT_EQ(verdicts(compare_results({a[2]}, {file_of(50.6, 126.5, 4)}, 0.02)),
            (std::vector<Verdict>{Verdict::slow, Verdict::slow}));
}

TEST(Compare, NothingIsToldApartMoreFinelyThanTheMachinesOwnSpeed) {
  ResultFile a = file_of(40, 100, 1), b = file_of(44, 110, 2), slower = file_of(80, 200, 3);
  b.peaks.read_gbs = slower.peaks.read_gbs = a.peaks.read_gbs / 1.25;
  EXPECT_NEAR(machine_drift(a, b), 0.25, 1e-9);
  EXPECT_EQ(verdicts(compare_results({a}, {b}, 0.02)), (std::vector<Verdict>{Verdict::ambiguous, Verdict::ambiguous}));
  EXPECT_EQ(verdicts(compare_results({a}, {slower}, 0.02)), (std::vector<Verdict>{Verdict::slow, Verdict::slow}));
}

TEST(Compare, WarnsOfWhatMovesAWholeRun) {
  ResultFile a = file_of(40, 100, 1), b = file_of(40, 100, 2);
  EXPECT_TRUE(compare_results({a}, {b}, 0.02).warnings.empty());
  a.environment["load"] = "2.10";
  a.environment["cores"] = b.environment["cores"] = "2";
  b.environment["load"] = "1.90";
  b.peaks.copy_gbs = a.peaks.copy_gbs * 1.25;
  b.peaks.read_gbs = a.peaks.read_gbs * 0.92;  // within 10 %
  b.peaks.bf16_tflops = 0;                     // not measured
  const auto result = compare_results({a}, {b}, 0.02);
  ASSERT_EQ(result.warnings.size(), 2u);
  EXPECT_NE(result.warnings[0].find("A (2026-09-30T10-12-33) began on a busy machine: load 2.1 on 2 cores"),
            std::string::npos);
  EXPECT_NE(result.warnings[1].find("memory copy peak +25 %"), std::string::npos);
  EXPECT_NE(to_text(result).find(" warning: A ("), std::string::npos);
}

TEST(Compare, JsonHoldsEveryRow) {
  ResultFile b = file_of(44, 100, 2);
  b.records[0].stages.push_back(test::sample_stage("extra", "", {1, 2}));
  const auto json = to_json(compare_results({file_of(40, 100, 1)}, {b}, 0.02));
  EXPECT_EQ(json.at("counts").at("SLOW"), 1);
  EXPECT_EQ(json.at("counts").at("????"), 1);
  EXPECT_EQ(json.at("rows").at(0).at("verdict"), "SLOW");
  EXPECT_NEAR(json.at("rows").at(0).at("ratio").get<double>(), 1.1, 0.01);
  EXPECT_LT(json.at("rows").at(0).at("low"), json.at("rows").at(0).at("high"));
  EXPECT_EQ(json.at("rows").at(2).at("reason"), "only in B");
}

// What the program does with a command line: the exit code, or kExitUsage if it can't be parsed.
int run_command(const std::vector<std::string>& arguments) {
  CLI::App app;
  Action action;
  add_compare(app, action);
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());
  try {
    app.parse(reversed);
  } catch (const CLI::ParseError&) {
    return kExitUsage;
  }
  return action();
}

TEST(Compare, CommandLine) {
  std::string pattern = (fs::temp_directory_path() / "mixlane_compare_XXXXXX").string();
  const fs::path folder = mkdtemp(pattern.data());
  write_result_file(file_of(40, 100, 1), folder / "a" / "x.json");
  write_result_file(file_of(44, 100, 2), folder / "b" / "y.json");
  const std::string a = folder / "a", b = folder / "b" / "y.json", json = folder / "out.json";
  EXPECT_EQ(run_command({"compare", a, b, "--json", json}), kExitFailed);
  EXPECT_EQ(nlohmann::json::parse(read_text_file(json)).at("threshold"), 0.02);
  EXPECT_EQ(run_command({"compare", a, b, "--threshold", "20%"}), kExitOk);
  EXPECT_EQ(run_command({"compare", a, b, "--threshold", "0.2"}), kExitOk);
  EXPECT_EQ(run_command({"compare", a, b, "--fail-on", "none"}), kExitOk);
  EXPECT_EQ(run_command({"compare", a, b, "--fail-on", "never"}), kExitUsage);
  for (const char* bad : {"two", "-1%", "2 percent", "200%", "nan"})
    EXPECT_EQ(run_command({"compare", a, b, "--threshold", bad}), kExitUsage) << bad;
  EXPECT_EQ(run_command({"compare", a}), kExitUsage);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace mixlane::bench
