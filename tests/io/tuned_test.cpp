// Files of tuned tables: there and back, what is refused, merging, folders, and a process that has never tuned.
#include "io/tuned.hpp"

#include <gtest/gtest.h>

#include <cstdlib>

#include "core/env.hpp"
#include "core/tuning.hpp"
#include "io/data_folder.hpp"
#include "mixlane/tuning.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"
#include "support/processes.hpp"

namespace mixlane {
namespace {

using namespace test;

TunedTable example() {
  return {
      .file = "example.json",
      .stage = "align",
      .machine = {"sm_90", 132},
      .fields = {"experts", "topk", "ids", "tokens"},
      .runs = {{"2026-11-21T10:00:00Z", "NVIDIA H200", "580.1 (API 13.0)", "abc123 (modified)", "mixlane tune"}},
      .entries = {{.key = {256, 8, "i32", 64}, .choice = "align.cluster", .run = 0, .measured_us = {{"align.cluster", 3.5}}},
                  {.key = {256, 8, "i32", 1},
                   .choice = "align.none",
                   .run = 0,
                   .measured_us = {{"align.none", 1.9}, {"align.oneshot", 2.75}}}}};
}

std::string edited(const std::string& from, const std::string& to) {
  std::string text = tuned_json(example());
  const size_t at = text.find(from);
  if (at == std::string::npos) throw std::runtime_error("not in the example: " + from);
  return text.replace(at, from.size(), to);
}

void expect_refused(const std::string& from, const std::string& to, std::vector<std::string> mentions) {
  SCOPED_TRACE(to);
  mentions.push_back("bad.json");
  expect_error(ErrorCode::bad_format, mentions, [&] { parse_tuned(edited(from, to), "bad.json"); });
}

TEST(Tuned, ThereAndBack) {
  const TunedTable back = parse_tuned(tuned_json(example()), "example.json");
  EXPECT_EQ(back.stage, "align");
  EXPECT_EQ(back.machine, (TunedMachine{"sm_90", 132}));
  EXPECT_EQ(back.fields, example().fields);
  ASSERT_EQ(back.runs.size(), 1u);
  EXPECT_EQ(back.runs[0].driver, "580.1 (API 13.0)");
  EXPECT_EQ(back.runs[0].commit, "abc123 (modified)");
  ASSERT_EQ(back.entries.size(), 2u);
  // Sorted by key: 1 token comes first.
  EXPECT_EQ(key_text(back, back.entries[0]), "experts=256 topk=8 ids=i32 tokens=1");
  EXPECT_EQ(back.entries[0].choice, "align.none");
  EXPECT_EQ(back.entries[0].measured_us, example().entries[1].measured_us);
  EXPECT_EQ(tuned_json(back), tuned_json(example()));
  EXPECT_EQ(tuned_file_name(back), "align.sm_90-132.json");
  TunedTable range = example();
  range.entries[0].from = 5;
  const TunedTable range_back = parse_tuned(tuned_json(range), "range.json");
  EXPECT_EQ(key_text(range_back, range_back.entries[1]), "experts=256 topk=8 ids=i32 tokens=5 to 64");
  EXPECT_EQ(range_back.entries[0].from, 0);
  EXPECT_EQ(tuned_json(range_back), tuned_json(range));
  TunedTable empty = example();
  empty.entries.clear();
  EXPECT_TRUE(parse_tuned(tuned_json(empty), "empty.json").entries.empty());
}

TEST(Tuned, EveryFieldIsChecked) {
  expect_refused("mixlane.tuned.1", "mixlane.tuned.2", {"format", "mixlane.tuned.1"});
  expect_refused("\"stage\": \"align\"", "\"stage\": \"../align\"", {"stage", "../align"});
  expect_refused("\"num_multiprocessors\": 132", "\"num_multiprocessors\": 0", {"machine.num_multiprocessors", "0"});
  expect_refused("\"experts\"", "\"topk\"", {"fields", "topk", "once"});
  expect_refused("\"driver\"", "\"drive\"", {"runs[0].driver"});
  expect_refused("\"run\":0", "\"run\":1", {"entries[0].run", "1"});
  expect_refused("\"run\":0", "\"run\":null", {"entries[0].run", "null"});
  expect_refused("[256,8,\"i32\",1]", "[256,8,1]", {"entries[0].key", "3 values", "experts, topk, ids, tokens"});
  expect_refused("[256,8,\"i32\",1]", "[256,8,\"i32\",-1]", {"entries[0].key", "-1"});
  expect_refused("[256,8,\"i32\",1]", "[256,8,\"i 32\",1]", {"entries[0].key", "i 32"});
  expect_refused("[256,8,\"i32\",1]", "[256,8,\"i32\",18446744073709551615]", {"entries[0].key"});
  expect_refused("\"align.none\",\"run\"", "7,\"run\"", {"entries[0].choice", "7"});
  expect_refused("\"align.oneshot\":2.75", "\"align.oneshot\":0", {"entries[0].us", "align.oneshot", "0"});
  const std::string large = "[256,8,\"i32\",64],\"choice\"";
  expect_refused(large, "[256,8,\"i32\",64],\"from\":64,\"choice\"", {"entries[1].from", "64", "1 to 63"});
  expect_refused(large, "[256,8,\"i32\",64],\"from\":0,\"choice\"", {"entries[1].from", "0", "1 to 63"});
  expect_refused(large, "[256,8,\"i32\",64],\"from\":null,\"choice\"", {"entries[1].from", "null"});
  expect_refused(large, "[256,8,\"i32\",64],\"from\":1,\"choice\"", {"tokens=1 to 64", "align.none", "align.cluster"});
  expect_refused("[256,8,\"i32\",1],", "[256,8,1,\"i32\"],\"from\":1,", {"entries[0].from", "no size"});
  expect_refused("\"us\":{\"align.none\"", "\"more\":1,\"us\":{\"align.none\"", {"more"});
  expect_refused("\"runs\"", "\"more\": 1, \"runs\"", {"more"});
  expect_refused("[256,8,\"i32\",1]", "[256,8,\"i32\",64]", {"tokens=64", "align.none", "align.cluster"});
}

TEST(Tuned, MergeKeepsAddsAndRefuses) {
  TunedTable fresh = example();
  fresh.runs[0].date = "2026-12-01T10:00:00Z";
  fresh.entries = {{.key = {256, 8, "i32", 1}, .choice = "align.none", .run = 0, .measured_us = {{"align.none", 1.5}}},
                   {.key = {64, 6, "i32", 1}, .choice = "align.none", .run = 0, .measured_us = {{"align.none", 1.6}}}};
  const TunedTable merged = merge_tuned(example(), fresh, false);
  ASSERT_EQ(merged.entries.size(), 3u);
  ASSERT_EQ(merged.runs.size(), 2u);
  EXPECT_EQ(merged.entries[1].measured_us[0].second, 1.9) << "the same choice: what was measured first stays";
  EXPECT_EQ(merged.runs[merged.entries[2].run].date, "2026-12-01T10:00:00Z");

  fresh.entries[0].choice = "align.oneshot";
  expect_error(
      ErrorCode::config_mismatch,
      {"example.json", "experts=256 topk=8 ids=i32 tokens=1", "align.none in the file", "align.oneshot now", "--replace"},
      [&] { merge_tuned(example(), fresh, false); });
  const TunedTable replaced = merge_tuned(example(), fresh, true);
  EXPECT_EQ(replaced.entries[1].choice, "align.oneshot");

  TunedTable all_new = example();
  for (TunedEntry& entry : all_new.entries) entry.measured_us[0].second += 1;
  EXPECT_EQ(merge_tuned(example(), all_new, true).runs.size(), 1u) << "runs without entries go";
  fresh.machine.num_multiprocessors = 114;
  expect_error(ErrorCode::config_mismatch, {"132", "114"}, [&] { merge_tuned(example(), fresh, true); });
}

TEST(Tuned, TablesOfAFolderMustAgree) {
  const TempFolder folder;
  TunedTable other = example();
  other.entries[0].choice = "align.multi_phase";
  write_file(folder / "a.json", tuned_json(example()));
  write_file(folder / "ignored.txt", "no table");
  EXPECT_EQ(read_tuned_folder(folder.path()).size(), 1u);
  write_file(folder / "b.json", tuned_json(other));
  expect_error(ErrorCode::bad_format, {"a.json says align.cluster", "b.json says align.multi_phase", "tokens=64"},
               [&] { read_tuned_folder(folder.path()); });
  expect_error(ErrorCode::io_error, {"nowhere"}, [] { read_tuned_folder("/nowhere"); });
}

TEST(Tuned, LoadingIsAllOrNothing) {
  const TempFolder folder;
  TunedTable other = example();
  other.entries[0].choice = "align.multi_phase";
  write_file(folder / "a.json", tuned_json(example()));
  Context context;
  load_tuned(context, (folder / "a.json").string());
  load_tuned(context, folder.path().string());  // the same again
  write_file(folder / "a.json", tuned_json(other));
  expect_error(ErrorCode::bad_format, {"align.cluster", "align.multi_phase"},
               [&] { load_tuned(context, (folder / "a.json").string()); });
  EXPECT_EQ(tuned_layers(context).tables[TunedLayers::given].size(), 2u);
  EXPECT_EQ(tuned_layers(context).version, 2u);
  expect_error(ErrorCode::io_error, {"missing.json"}, [&] { load_tuned(context, (folder / "missing.json").string()); });
}

// What a tuning process wrote is found by another one through the environment.
TEST(Tuned, ProcessThatHasNeverTunedFindsTheChoice) {
  const TempFolder folder;
  write_file(folder / "a.json", tuned_json(example()));
  const auto ended = run_ranks(1, [&](int) {
    setenv("MIXLANE_TUNED", folder.path().c_str(), 1);
    const Context context;
    const TunedLayers& layers = tuned_layers(context);
    const auto& tables = layers.tables[TunedLayers::environment];
    if (tables.size() != 1 || tables[0].entries.size() != 2) throw std::runtime_error("not found");
  });
  EXPECT_EQ(ended[0].exit_code, 0) << ended[0].error;
}

// The tables that come with the library: readable, in agreement, and what tuning would write.
TEST(Tuned, ShippedTables) {
  for (const TunedTable& table : read_tuned_folder(data_folder("tuned"))) {
    SCOPED_TRACE(table.file);
    EXPECT_EQ(std::filesystem::path(table.file).filename(), tuned_file_name(table));
    EXPECT_EQ(read_file(table.file), tuned_json(table));
    EXPECT_FALSE(table.entries.empty());
    for (const TunedEntry& entry : table.entries)
      EXPECT_TRUE(std::any_of(entry.measured_us.begin(), entry.measured_us.end(), [&](const auto& measured) {
        return measured.first == entry.choice;
      })) << key_text(table, entry);
  }
}

}  // namespace
}  // namespace mixlane
