#include "report/report.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "models/models.hpp"
#include "report/format.hpp"
#include "results/files.hpp"
#include "sample_results.hpp"
#include "support/errors.hpp"

namespace mixlane::bench {
namespace {

namespace fs = std::filesystem;
using mixlane::test::expect_error;
using test::sample_file;

void expect_text(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' missing in:\n" << text;
}

std::vector<std::string> lines(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> all;
  for (std::string line; std::getline(in, line);) all.push_back(line);
  return all;
}

// The fields of a line without quoted commas.
std::vector<std::string> fields(const std::string& line) {
  std::vector<std::string> all(1);
  for (const char c : line)
    if (c == ',') {
      all.emplace_back();
    } else {
      all.back() += c;
    }
  return all;
}

std::string field(const std::string& csv, size_t row, const std::string& column) {
  const auto header = fields(lines(csv).at(0));
  const auto found = std::find(header.begin(), header.end(), column);
  EXPECT_NE(found, header.end()) << column;
  const auto cells = fields(lines(csv).at(row));
  EXPECT_EQ(cells.size(), header.size());
  return cells.at(static_cast<size_t>(found - header.begin()));
}

TEST(Format, KeepsWhatMatters) {
  EXPECT_EQ(format_us(4.1), "4.10");
  EXPECT_EQ(format_us(9.996), "10.0");
  EXPECT_EQ(format_us(31.24), "31.2");
  EXPECT_EQ(format_us(1234.4), "1234");
  EXPECT_EQ(format_us(118.44), "118.4");
  EXPECT_EQ(format_us(0), "-");
  EXPECT_EQ(format_percent(0.71), "71");
  EXPECT_EQ(format_percent(0.0123), "1.2");
  EXPECT_EQ(format_percent(0), "-");
  EXPECT_EQ(format_bytes(512), "512 B");
  EXPECT_EQ(format_bytes(1.5e6), "1.50 MB");
}

TEST(Format, TablesLineUp) {
  Table table({"name", "us"});
  table.add({"a", "1.5"});
  table.add({"long name", "12.5"});
  EXPECT_EQ(table.markdown(), "| name      |   us |\n|-----------|-----:|\n| a         |  1.5 |\n| long name | 12.5 |\n");
  EXPECT_EQ(table.plain(), " name         us\n a           1.5\n long name  12.5\n");
}

TEST(Csv, HasOneRowPerCellWithTheNewestRun) {
  ResultFile old = sample_file(), recent = sample_file();
  recent.stamp = "2026-10-01T00-00-00";
  recent.records[0].stages[1].time.median_us = 80.5;
  recent.records.pop_back();  // zipf:1.2 is only in the old run
  const std::string csv = make_report({old, recent}, {}).csv;
  ASSERT_EQ(lines(csv).size(), 3u);
  EXPECT_EQ(field(csv, 1, "model"), "toy");
  EXPECT_EQ(field(csv, 1, "quant"), "none");
  EXPECT_EQ(field(csv, 1, "tokens"), "16");
  EXPECT_EQ(field(csv, 1, "workload"), "balanced");
  EXPECT_EQ(field(csv, 1, "layer_us"), "80.5");
  EXPECT_EQ(field(csv, 1, "layer_p10_us"), "90.25");
  EXPECT_EQ(field(csv, 1, "layer_p90_us"), "120.75");
  EXPECT_EQ(field(csv, 1, "layer_n"), "40");
  EXPECT_EQ(field(csv, 1, "layer_converged"), "true");
  EXPECT_EQ(field(csv, 1, "layer_sol_share"), "0.5");
  EXPECT_EQ(field(csv, 1, "dispatch_us"), "100.5");
  EXPECT_EQ(field(csv, 1, "dispatch_variant"), "dispatch.cpu");
  EXPECT_EQ(field(csv, 1, "combine_us"), "");
  EXPECT_EQ(field(csv, 1, "passed"), "true");
  EXPECT_EQ(field(csv, 1, "rel_error"), "0.0021");
  EXPECT_EQ(field(csv, 1, "stamp"), "2026-10-01T00-00-00");
  EXPECT_EQ(field(csv, 1, "commit"), "abc1234");
  EXPECT_EQ(field(csv, 1, "ranks"), "2");
  EXPECT_EQ(field(csv, 1, "device"), "cpu");
  EXPECT_EQ(field(csv, 1, "history"), "2026-09-30T10-12-33=100.5");
  EXPECT_EQ(field(csv, 2, "workload"), "zipf:1.2");
  EXPECT_EQ(field(csv, 2, "stamp"), "2026-09-30T10-12-33");
  EXPECT_EQ(field(csv, 2, "history"), "");
}

TEST(Csv, QuotesAndLeavesOutWhatIsNoNumber) {
  ResultFile file = sample_file();
  file.records.pop_back();
  file.model = "a,\"b\"";
  file.records[0].correctness.rel_error = std::numeric_limits<double>::quiet_NaN();
  file.records[0].stages = {test::sample_stage("extra", "extra.cpu", {})};
  const std::string csv = make_report({file}, {}).csv;
  EXPECT_EQ(lines(csv).at(1).rfind("\"a,\"\"b\"\"\",none,16,balanced,,,,,,,,", 0), 0u) << csv;
  expect_text(csv, {"extra_us,extra_variant,extra_sol_share", ",100.5,extra.cpu,0.5,true,,0.01,2,"});
}

TEST(Markdown, ShowsRulesMachineCellsStagesAndSkew) {
  ResultFile file = sample_file();
  file.peaks.skipped.clear();
  const std::string text = make_report({file}, {}).markdown;
  expect_text(text, {"2 cells from 1 result files",
                     "maximum over ranks",
                     "a rank's own included",
                     "max(bytes / memory rate",
                     "of the newest run, 2026-09-30T10-12-33",
                     "Some CPU",
                     "2 ranks, cpu, eager, hot",
                     "| 2026-09-30T10-12-33 |      20.5 |      15.2 |             8 |          3.5 |        1.75 |",
                     "## toy, quant none",
                     "100.5 |",
                     "90.2 - 120.8",
                     "0.8 %",
                     "dispatch.cpu",
                     "50 |",
                     "1.10 TB",
                     "4.10 kB",
                     "2.05 kB",
                     "1.03 (rank 1)",
                     "3.00",
                     "1 of 4",
                     "3 - 7",
                     "1.40"});
  EXPECT_EQ(text.find("## Warnings"), std::string::npos) << text;
  EXPECT_EQ(text.find("## History"), std::string::npos);
}

TEST(Markdown, WarnsOfEverythingThatSpoilsANumber) {
  ResultFile file = sample_file();
  file.complete = false;
  file.unverified = {"hidden", "routing.scale"};
  file.records[0].correctness.passed = false;
  file.records[0].correctness.rel_error = 0.25;
  file.records[1].stages[1].time.converged = false;
  const std::string text = make_report({file}, {"skipped: bad_format: x.json: model is missing"}).markdown;
  expect_text(text, {"## Warnings", "WRONG RESULT: toy none tokens=16 balanced: relative error 2.50e-01",
                     "not converged: toy none tokens=16 zipf:1.2: the median is known to +-0.8 % after 40 samples",
                     "incomplete: run 2026-09-30T10-12-33", "the same command resumes it: mixlane bench --model toy",
                     "unverified model: nobody has checked these values of toy: hidden, routing.scale",
                     "bf16_tflops: oneDNN is not installed", "x.json: model is missing", "2.5e-01 FAILED"});
}

TEST(Markdown, ShowsHistoryAndDifferingMachines) {
  ResultFile old = sample_file(), recent = sample_file();
  recent.stamp = "2026-10-01T00-00-00";
  recent.environment["commit"] = "def5678";
  for (Record& record : recent.records) record.stages[1].time.median_us = 80.4;
  const std::string text = make_report({old, recent}, {}).markdown;
  expect_text(text, {"## History", "1.000", "1.250", "def5678", "- 2026-09-30T10-12-33 differs: commit abc1234"});
}

TEST(Markdown, SumsTheStagesOnce) {
  ResultFile file = sample_file();
  std::vector<StageRecord>& stages = file.records[0].stages;
  stages.insert(stages.begin(), test::sample_stage("routing", "routing.cpu", {}));
  stages.insert(stages.end() - 1, test::sample_stage("dispatch+combine", "", {}));
  expect_text(make_report({file}, {}).markdown, {"| sum of stages    | -            | 201.0 |"});
}

TEST(Markdown, NothingIsNoCrash) {
  const Report report = make_report({}, {"skipped: a.json"});
  expect_text(report.markdown, {"0 cells", "skipped: a.json"});
  EXPECT_EQ(lines(report.csv).size(), 1u);
}

TEST(WriteReport, PutsBothFilesBesideTheRuns) {
  std::string pattern = (fs::temp_directory_path() / "mixlane_report_XXXXXX").string();
  const fs::path folder = mkdtemp(pattern.data());
  const ResultFile file = sample_file();
  write_result_file(file, result_path(folder / "runs", file));
  EXPECT_EQ(write_report(folder / "runs"), folder / "report" / "REPORT.md");
  EXPECT_EQ(write_report(folder / "runs" / ""), folder / "report" / "REPORT.md");
  EXPECT_EQ(read_text_file(folder / "report" / "REPORT.md"), make_report({file}, {}).markdown);
  EXPECT_EQ(read_text_file(folder / "report" / "summary.csv"), make_report({file}, {}).csv);
  fs::create_directories(folder / "empty");
  expect_error(ErrorCode::io_error, {"no result below", "mixlane bench"},
               [&] { write_report(folder / "empty", folder / "x"); });
  EXPECT_FALSE(fs::exists(folder / "x"));
  fs::remove_all(folder);
}

TEST(Models, TableShowsShapesAndDoubts) {
  Model model;
  model.name = "toy";
  model.hidden = 2048;
  model.intermediate = 768;
  model.routing.num_experts = 128;
  model.routing.num_zero_experts = 2;
  model.routing.num_topk = 8;
  model.routing.scoring = Scoring::sigmoid;
  model.routing.scale = 2.5f;
  model.routing.num_groups = 8;
  model.routing.topk_groups = 4;
  model.num_shared_experts = 1;
  model.shared_intermediate = 512;
  model.source = "a paper";
  const std::string line = lines(models_table({model})).at(1);
  EXPECT_EQ(line, " toy     2048    768  128+2    8  1 (512)  4 of 8  sigmoid    2.5  swiglu      a paper");
  EXPECT_EQ(models_table({model}).find('*'), std::string::npos);
  model.unverified = {"*"};
  model.hidden = 0;
  expect_text(models_table({model}), {" toy *  ?", "unverified"});
  const auto json = models_json({model}).at(0);
  EXPECT_EQ(json.at("num_experts"), 128);
  EXPECT_EQ(json.at("scoring"), "sigmoid");
  EXPECT_EQ(json.at("activation"), "swiglu");
  EXPECT_EQ(json.at("unverified"), nlohmann::ordered_json::array({"*"}));
}

}  // namespace
}  // namespace mixlane::bench
