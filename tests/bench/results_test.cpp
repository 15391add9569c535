#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "results/collect.hpp"
#include "results/files.hpp"
#include "sample_results.hpp"
#include "support/errors.hpp"

namespace mixlane::bench {
namespace {

namespace fs = std::filesystem;
using mixlane::test::expect_error;
using nlohmann::json;
using test::sample_file;

class ResultFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "mixlane_results_XXXXXX").string();
    folder = mkdtemp(pattern.data());
  }
  void TearDown() override { fs::remove_all(folder); }
  size_t num_entries(const fs::path& path) const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(path), fs::directory_iterator()));
  }
  fs::path folder;
};

json sample_json() { return json::parse(to_text(sample_file())); }
ResultFile parse(const json& value) { return result_file_from_json(value, "a.json"); }

TEST(ResultJson, KeepsEveryField) {
  ResultFile written = sample_file();
  written.records[1].mode = "graph";
  written.records[1].cache = "cold";
  written.records[1].stages[0] = test::sample_stage_alone("align", "align.none", "block=64", 3.5);
  const ResultFile file = result_file_from_text(to_text(written), "a.json");
  EXPECT_EQ(file.schema, 2);
  EXPECT_EQ(file.stamp, "2026-09-30T10-12-33");
  EXPECT_EQ(file.command, "mixlane bench --model toy");
  EXPECT_EQ(file.model, "toy");
  EXPECT_EQ(file.quant, "none");
  EXPECT_EQ(file.ranks, 2);
  EXPECT_EQ(file.seed, 18446744073709551615u);
  EXPECT_EQ(file.device, "cpu");
  EXPECT_EQ(file.environment.at("cpu"), "Some CPU");
  EXPECT_EQ(file.peaks.copy_gbs, 20.5);
  EXPECT_EQ(file.peaks.read_gbs, 15.25);
  EXPECT_EQ(file.peaks.exchange_gbs, 8);
  EXPECT_EQ(file.peaks.bf16_tflops, 3.5);
  EXPECT_EQ(file.peaks.f32_tflops, 1.75);
  EXPECT_EQ(file.peaks.fp8_tflops, 1400.5);
  EXPECT_EQ(file.peaks.launch_us, 2.9);
  EXPECT_EQ(file.peaks.graph_node_us, 0.54);
  EXPECT_EQ(file.peaks.peer_write_gbs, 367);
  EXPECT_EQ(file.peaks.peer_read_gbs, 338);
  EXPECT_EQ(file.peaks.copy_engine_gbs, 392);
  EXPECT_EQ(file.peaks.flag_us, 0.69);
  EXPECT_EQ(file.peaks.measured_at, "2026-09-30T10-12-00");
  EXPECT_EQ(file.peaks.skipped, std::vector<std::string>{"bf16_tflops: oneDNN is not installed"});
  EXPECT_TRUE(file.complete);
  ASSERT_EQ(file.records.size(), 2u);
  const Record& record = file.records[1];
  EXPECT_EQ(record.tokens, 16);
  EXPECT_EQ(record.workload, "zipf:1.2");
  EXPECT_EQ(record.mode, "graph");
  EXPECT_EQ(record.cache, "cold");
  EXPECT_EQ(record.rank_tokens, (std::vector<int>{16, 16}));
  EXPECT_EQ(record.expert_pairs, (std::vector<int64_t>{6, 1, 1, 0}));
  EXPECT_EQ(record.rank_rows, (std::vector<int64_t>{7, 3}));
  EXPECT_TRUE(record.correctness.passed);
  EXPECT_EQ(record.correctness.checked_tokens, 32);
  EXPECT_EQ(record.correctness.rel_error, 0.0021);
  EXPECT_EQ(record.correctness.tolerance, 0.01);
  EXPECT_EQ(record.correctness.reference, "layer reference (f32)");
  EXPECT_EQ(record.window_bytes, 1 << 20);
  EXPECT_EQ(record.weight_bytes, 1 << 22);
  ASSERT_EQ(record.stages.size(), 2u);
  const StageRecord& alone = record.stages[0];
  EXPECT_EQ(alone.options, "block=64");
  EXPECT_TRUE(alone.automatic);
  EXPECT_EQ(alone.calls_per_sample, 32);
  EXPECT_TRUE(alone.correctness.passed);
  EXPECT_EQ(alone.correctness.checked_tokens, 16);
  EXPECT_EQ(alone.correctness.reference, "align.cpu");
  ASSERT_EQ(alone.kernels.size(), 2u);
  EXPECT_EQ(alone.kernels[0].variant, "align.none");
  EXPECT_EQ(alone.kernels[0].us, 3.25);
  EXPECT_EQ(alone.kernels[1].variant, "");
  EXPECT_EQ(file.records[0].mode, "eager");
  EXPECT_EQ(file.records[0].cache, "hot");
  const StageRecord& stage = file.records[0].stages[0];
  EXPECT_EQ(stage.stage, "dispatch");
  EXPECT_EQ(stage.variant, "dispatch.cpu");
  EXPECT_EQ(stage.time.median_us, 100.5);
  EXPECT_EQ(stage.time.p10_us, 90.25);
  EXPECT_EQ(stage.time.p90_us, 120.75);
  EXPECT_EQ(stage.time.min_us, 88);
  EXPECT_EQ(stage.time.max_us, 131);
  EXPECT_EQ(stage.time.n, 40);
  EXPECT_EQ(stage.time.rel_half_width, 0.008);
  EXPECT_TRUE(stage.time.converged);
  EXPECT_EQ(stage.wait_us, 12.5);
  EXPECT_EQ(stage.rank_median_us, (std::vector<double>{95.5, 100.5}));
  EXPECT_EQ(stage.samples_us, (std::vector<double>{40, 41, 42}));
  EXPECT_EQ(stage.bytes, int64_t{1} << 40);
  EXPECT_EQ(stage.flops, 123456789012345);
  EXPECT_EQ(stage.logical_bytes, 4096);
  EXPECT_EQ(stage.remote_bytes, 2048);
  EXPECT_EQ(stage.sol_us, 50.25);
  EXPECT_EQ(stage.sol_share, 0.5);
  EXPECT_EQ(stage.bound, "memory");
}

TEST(ResultJson, TextIsReadableAndStable) {
  const std::string text = to_text(sample_file());
  EXPECT_EQ(to_text(result_file_from_text(text, "a.json")), text);
  EXPECT_EQ(text.rfind("{\n \"schema\": 2,\n \"stamp\": \"2026-09-30T10-12-33\",", 0), 0u) << text.substr(0, 80);
  EXPECT_NE(text.find("\"samples_us\": [40.0,41.0,42.0]"), std::string::npos);
}

TEST(ResultJson, AnErrorThatIsNoNumberSurvives) {
  ResultFile file = sample_file();
  file.records[0].correctness.rel_error = std::numeric_limits<double>::infinity();
  EXPECT_TRUE(std::isnan(result_file_from_text(to_text(file), "a.json").records[0].correctness.rel_error));
}

// What schema 1 stored: mode and cache once per file, nothing of stages alone and of GPUs.
json schema_one(json value) {
  value["schema"] = 1;
  value["mode"] = "eager";
  value["cache"] = "cold";
  for (const char* key :
       {"fp8_tflops", "launch_us", "graph_node_us", "peer_write_gbs", "peer_read_gbs", "copy_engine_gbs", "flag_us"})
    value["peaks"].erase(key);
  for (json& record : value["records"]) {
    record.erase("mode");
    record.erase("cache");
    for (json& stage : record["stages"])
      for (const char* key : {"options", "automatic", "calls_per_sample", "correctness", "kernels"}) stage.erase(key);
  }
  return value;
}

TEST(ResultJson, OlderSchemasAreRead) {
  const ResultFile file = parse(schema_one(sample_json()));
  EXPECT_EQ(file.schema, kSchemaVersion);
  EXPECT_EQ(to_text(result_file_from_text(to_text(file), "again.json")), to_text(file)) << "goes on as a file of today";
  EXPECT_EQ(file.peaks.f32_tflops, 1.75);
  EXPECT_EQ(file.peaks.flag_us, 0);
  for (const Record& record : file.records) {
    EXPECT_EQ(record.mode, "eager");
    EXPECT_EQ(record.cache, "cold");
    EXPECT_EQ(record.stages[0].time.median_us, 100.5);
    EXPECT_EQ(record.stages[0].options, "");
    EXPECT_EQ(record.stages[0].calls_per_sample, 1);
    EXPECT_EQ(record.stages[0].correctness.checked_tokens, 0);
  }
  json without_cache = schema_one(sample_json());
  without_cache.erase("cache");
  expect_error(ErrorCode::bad_format, {"a.json: cache is missing"}, [&] { parse(without_cache); });
}

TEST(ResultJson, StagesAloneStandBesideEachOther) {
  ResultFile file = sample_file();
  file.records[0].stages = {test::sample_stage_alone("align", "align.none", "block=64", 3),
                            test::sample_stage_alone("align", "align.none", "block=128", 4),
                            test::sample_stage_alone("align", "align.cluster", "block=64", 5)};
  file.records[1].workload = file.records[0].workload;
  file.records[1].cache = "cold";
  EXPECT_EQ(parse(json::parse(to_text(file))).records[0].stages.size(), 3u);
  file.records[0].stages.push_back(file.records[0].stages[1]);
  expect_error(ErrorCode::bad_format, {"stages[3] repeats the stage 'align'"}, [&] { parse(json::parse(to_text(file))); });
  file.records[1].cache = "hot";
  file.records[0].stages.pop_back();
  expect_error(ErrorCode::bad_format, {"records[1] repeats", "mode=eager cache=hot"},
               [&] { parse(json::parse(to_text(file))); });
}

TEST(ResultJson, NamesFileAndFieldOfWhatIsWrong) {
  const auto refused = [](const std::function<void(json&)>& damage, const std::vector<std::string>& mentions) {
    json value = sample_json();
    damage(value);
    expect_error(ErrorCode::bad_format, mentions, [&] { parse(value); });
  };
  refused([](json& v) { v.erase("model"); }, {"a.json: model is missing"});
  refused([](json& v) { v["model"] = ""; }, {"a.json: model is empty"});
  refused([](json& v) { v["ranks"] = 0; }, {"ranks is 0"});
  refused([](json& v) { v["ranks"] = -1; }, {"ranks must be a whole number", "-1"});
  refused([](json& v) { v["ranks"] = 3; }, {"records[0].rank_tokens has 2 entries for 3 ranks"});
  refused([](json& v) { v["complete"] = 1; }, {"complete must be true or false, not 1"});
  refused([](json& v) { v["environment"]["cpu"] = 4; }, {"environment.cpu must be a text, not 4"});
  refused([](json& v) { v["records"] = "none"; }, {"records must be a list"});
  refused([](json& v) { v["records"][1]["tokens"] = 1.5; }, {"records[1].tokens", "2147483647", "1.5"});
  refused([](json& v) { v["records"][1]["tokens"] = 2147483648u; }, {"records[1].tokens", "2147483648"});
  refused([](json& v) { v["records"][1]["workload"] = "balanced"; }, {"records[1] repeats tokens=16 workload=balanced"});
  refused([](json& v) { v["records"][1].erase("mode"); }, {"records[1].mode is missing"});
  refused([](json& v) { v["records"][0]["stages"][1]["time"].erase("n"); }, {"records[0].stages[1].time.n is missing"});
  refused([](json& v) { v["records"][0]["stages"][1]["stage"] = "dispatch"; }, {"stages[1] repeats the stage 'dispatch'"});
  refused([](json& v) { v["records"][0]["stages"][0]["samples_us"][2] = nullptr; }, {"samples_us[2]", "null"});
  refused([](json& v) { v["records"][0]["stages"][0]["samples_us"][2] = -0.5; }, {"samples_us[2]", "-0.5"});
  refused([](json& v) { v["records"][0]["stages"][0]["rank_median_us"] = {1.0}; },
          {"rank_median_us has 1 entries for 2 ranks"});
  refused([](json& v) { v["peaks"].erase("f32_tflops"); }, {"peaks.f32_tflops is missing"});
  refused([](json& v) { v["peaks"]["flag_us"] = "fast"; }, {"peaks.flag_us must be a number", "fast"});
  refused([](json& v) { v.erase("schema"); }, {"schema is missing", "mixlane bench"});
  refused([](json& v) { v["schema"] = kSchemaVersion + 1; }, {"schema is 3", "1 to 2", "newer"});
  refused([](json& v) { v["schema"] = 0; }, {"schema is 0"});
  refused([](json& v) { v = json::array(); }, {"a.json: the file must be an object, not []"});
  expect_error(ErrorCode::bad_format, {"b.json: not JSON"}, [] { result_file_from_text("{\"schema\": 1,", "b.json"); });
  expect_error(ErrorCode::bad_format, {"b.json: not JSON"}, [] { result_file_from_text("", "b.json"); });
}

TEST_F(ResultFiles, AreWrittenWholeWhereTheyBelong) {
  ResultFile file = sample_file();
  const fs::path path = result_path(folder / "runs", file);
  EXPECT_EQ(path, folder / "runs" / "results_2026-09-30T10-12-33" / "toy__qnone.json");
  write_result_file(file, path);
  file.records.pop_back();
  write_result_file(file, path);
  EXPECT_EQ(read_result_file(path).records.size(), 1u);
  EXPECT_EQ(read_text_file(path), to_text(file));
  EXPECT_EQ(num_entries(path.parent_path()), 1u) << "no temporary file stays";
}

TEST_F(ResultFiles, ModelNamesNeverLeaveTheFolder) {
  ResultFile file = sample_file();
  file.model = "../../etc/x y";
  EXPECT_EQ(result_path(folder, file).filename(), ".._.._etc_x_y__qnone.json");
  EXPECT_EQ(result_path(folder, file).parent_path().parent_path(), folder);
}

TEST_F(ResultFiles, UnwritableTargetsAreNamed) {
  write_text_file(folder / "plain", "text");
  expect_error(ErrorCode::io_error, {(folder / "plain").string(), "Not a directory"},
               [&] { write_result_file(sample_file(), folder / "plain" / "deeper" / "a.json"); });
  fs::create_directories(folder / "taken" / "inner");
  expect_error(ErrorCode::io_error, {(folder / "taken").string(), "directory"},
               [&] { write_result_file(sample_file(), folder / "taken"); });
  EXPECT_EQ(num_entries(folder), 2u) << "no temporary file stays";
  expect_error(ErrorCode::io_error, {"absent.json", "No such file"}, [&] { read_result_file(folder / "absent.json"); });
}

TEST_F(ResultFiles, CollectReadsAllThatCanBeReadOldestFirst) {
  ResultFile file = sample_file();
  for (const char* stamp : {"2026-10-02T00-00-00", "2026-09-01T00-00-00", "2026-10-01T00-00-00"}) {
    file.stamp = stamp;
    write_result_file(file, result_path(folder / "some" / "where", file));
  }
  write_text_file(folder / "broken.json", "{");
  write_text_file(folder / "notes.txt", "{");
  write_text_file(folder / "traces_2026" / "rank0.json", "{");
  const Collection found = collect_results(folder);
  ASSERT_EQ(found.files.size(), 3u);
  EXPECT_EQ(found.files[0].stamp, "2026-09-01T00-00-00");
  EXPECT_EQ(found.files[2].stamp, "2026-10-02T00-00-00");
  EXPECT_NE(found.names[2].find("results_2026-10-02T00-00-00"), std::string::npos);
  ASSERT_EQ(found.warnings.size(), 1u);
  EXPECT_NE(found.warnings[0].find("broken.json"), std::string::npos);
  EXPECT_EQ(collect_results(found.names[1]).files.at(0).stamp, "2026-10-01T00-00-00");
  expect_error(ErrorCode::io_error, {"nowhere"}, [&] { collect_results(folder / "nowhere"); });
}

}  // namespace
}  // namespace mixlane::bench
