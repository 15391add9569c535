// Keys, look-ups and the choice between tuned tables and the model; a table of variants that run nowhere.
#include "core/tuning.hpp"

#include <gtest/gtest.h>

#include <bit>

#include "support/errors.hpp"

namespace mixlane {
namespace {

using test::expect_error;

constexpr std::string_view kWords[] = {"red", "blue"};
constexpr TuneField kFields[] = {{"size"}, {"colour", kWords}};
constexpr TuneSpace kSpace{"demo", kFields, [](const PackedKey& key) { return fmt::format(" --size {}", key[0]); }};
constexpr TuneField kSized[] = {{"colour", kWords}, {"size"}};
constexpr TuneSpace kBuckets{"demo", kSized, nullptr,
                             [](const PackedKey& key) { return TokenBuckets{.steps_per_octave = 4}.end(key[1]); }};
const TunedMachine kMachine{"sm_90", 132};

TunedTable table(const std::string& file, int64_t size, const std::string& colour, const std::string& choice) {
  return {.file = file,
          .stage = "demo",
          .machine = kMachine,
          .fields = {"size", "colour"},
          .runs = {},
          .entries = {{.key = {size, colour}, .choice = choice, .run = 0, .measured_us = {}}}};
}

// A call that "takes" so long, and variants that refuse above a size.
struct DemoArgs {
  int64_t size = 0;
};
std::string refuse_large(const Context&, const DemoArgs& args) { return args.size > 100 ? "too large" : ""; }
void launch_nothing(Context&, const DemoArgs&, Stream) {}
constexpr Variant<DemoArgs> kSmall{{"demo.small", ""}, refuse_large, launch_nothing, [](const DemoArgs& args, int) {
                                     return 1.0 + static_cast<double>(args.size);
                                   }};
constexpr Variant<DemoArgs> kLarge{{"demo.large", ""}, nullptr, launch_nothing, [](const DemoArgs& args, int num) {
                                     return 20.0 + static_cast<double>(args.size) / num;
                                   }};
constexpr Variant<DemoArgs> kTable[] = {kSmall, kLarge};

StageTuning tuning_of(const Context& context) { return {context, kMachine, kSpace, {"demo.small", "demo.large"}}; }

std::string_view choice(const Context& context, StageTuning& tuning, const DemoArgs& args, PackedKey key,
                        std::string_view wanted = "auto") {
  return select_tuned(std::span<const Variant<DemoArgs>>(kTable), wanted, context, args, tuning, key).info.id;
}

TEST(Tuning, BucketsAreStepsOfOctaves) {
  const auto ends = [](const TokenBuckets& buckets) {
    std::vector<int64_t> all;
    for (int64_t tokens = 1; tokens <= 40; tokens = all.back() + 1) all.push_back(buckets.end(tokens));
    return all;
  };
  EXPECT_EQ(ends({.steps_per_octave = 1}), (std::vector<int64_t>{1, 2, 4, 8, 16, 32, 64}));
  EXPECT_EQ(ends({.steps_per_octave = 2}), (std::vector<int64_t>{1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48}));
  EXPECT_EQ(ends({.steps_per_octave = 4}),
            (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40}));
}

TEST(Tuning, BucketsCoverAllSizesAndHoldTheirBorders) {
  for (const int steps : {1, 2, 4})
    for (const int64_t topk : {1, 2, 5, 6, 8, 22, 1000}) {
      const TokenBuckets buckets{.steps_per_octave = steps, .most_pairs = 1 << 18};
      int64_t first = 1;  // of the bucket
      for (int64_t tokens = 1; tokens * topk <= buckets.most_pairs; ++tokens) {
        const int64_t end = buckets.end(tokens, topk);
        ASSERT_GE(end, tokens) << steps << " x " << topk;
        ASSERT_EQ(buckets.end(end, topk), end) << steps << " x " << topk;
        if (tokens > first) {
          ASSERT_EQ(end, buckets.end(first, topk)) << tokens << ", " << steps << " x " << topk;
        }
        // Its pairs are in one step of their octave.
        const auto octave =
            static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(std::max<int64_t>(first * topk - 1, 1))));
        ASSERT_LE((end - first) * topk, std::max<int64_t>(octave / steps - 1, 0)) << steps << " x " << topk;
        if (tokens == end) first = end + 1;
      }
      const int64_t largest = std::max<int64_t>(buckets.most_pairs / topk, 1);
      EXPECT_EQ(buckets.end(int64_t{1} << 30, topk), largest) << "stands for all above";
    }
  const TokenBuckets two, four{.steps_per_octave = 4};
  EXPECT_EQ(two.end(0), 1);
  EXPECT_EQ(two.end(17, 6), 21) << "128 pairs and no more";
  EXPECT_EQ(two.end(22, 6), 32) << "192 pairs";
  EXPECT_EQ(four.end(17, 6), 18) << "112 pairs and no more";
  EXPECT_EQ(four.end(22, 6), 26) << "160 pairs";
  EXPECT_EQ(four.end(int64_t{1} << 30, 8), 131072);
}

TEST(Tuning, LookupKnowsItsMachineAndStageOnly) {
  TunedLayers layers;
  layers.tables[TunedLayers::given] = {table("a", 5, "blue", "y")};
  TunedTable other_machine = table("b", 6, "blue", "y"), other_stage = table("c", 7, "blue", "y");
  other_machine.machine.num_multiprocessors = 114;
  other_stage.stage = "else";
  layers.tables[TunedLayers::installed] = {other_machine, other_stage};
  const std::vector<std::string_view> choices{"x", "y"};
  const TunedLookup lookup(layers, kMachine, kSpace, choices);
  EXPECT_EQ(lookup.size(), 1u);
  EXPECT_EQ(lookup.find({5, 1}), 1);
  EXPECT_EQ(lookup.find({5, 0}), -1);
  EXPECT_EQ(lookup.find({6, 1}), -1);
  EXPECT_EQ(lookup.find({7, 1}), -1);
}

TEST(Tuning, EarlierLayerGoesFirstAndFieldsMayComeInAnyOrder) {
  TunedLayers layers;
  TunedTable given = table("a", 5, "blue", "x");
  given.fields = {"colour", "size"};
  given.entries[0].key = {"blue", int64_t{5}};
  layers.tables[TunedLayers::given] = {given};
  layers.tables[TunedLayers::installed] = {table("b", 5, "blue", "y"), table("c", 6, "red", "y")};
  const std::vector<std::string_view> choices{"x", "y"};
  const TunedLookup lookup(layers, kMachine, kSpace, choices);
  EXPECT_EQ(lookup.find({5, 1}), 0);
  EXPECT_EQ(lookup.find({6, 0}), 1);
}

TEST(Tuning, WhatTheStageDoesNotKnowIsNamed) {
  const std::vector<std::string_view> choices{"x", "y"};
  const auto resolve = [&](TunedTable bad) {
    TunedLayers layers;
    layers.tables[TunedLayers::given] = {std::move(bad)};
    TunedLookup(layers, kMachine, kSpace, choices);
  };
  expect_error(ErrorCode::bad_format, {"my.json", "size=5 colour=blue", "'z'", "x, y"},
               [&] { resolve(table("my.json", 5, "blue", "z")); });
  expect_error(ErrorCode::bad_format, {"my.json", "colour is green", "red, blue"},
               [&] { resolve(table("my.json", 5, "green", "x")); });
  TunedTable fewer = table("my.json", 5, "blue", "x");
  fewer.fields = {"size", "shape"};
  expect_error(ErrorCode::bad_format, {"my.json", "size, shape", "size, colour"}, [&] { resolve(fewer); });
  TunedTable swapped = table("my.json", 5, "blue", "x");
  swapped.entries[0].key = {"blue", int64_t{5}};
  expect_error(ErrorCode::bad_format, {"my.json", "size is blue", "whole number"}, [&] { resolve(swapped); });
}

TEST(Tuning, KeysThatNoCallAsksForAreRefused) {
  const std::vector<std::string_view> choices{"x", "y"};
  TunedLayers layers;
  layers.tables[TunedLayers::given] = {table("fine.json", 40, "blue", "x")};
  EXPECT_EQ(TunedLookup(layers, kMachine, kBuckets, choices).find({1, 40}), 0);
  layers.tables[TunedLayers::given] = {table("other.json", 34, "blue", "x")};
  expect_error(ErrorCode::bad_format, {"other.json", "size=34 colour=blue", "ask for size=40", "tune it again"},
               [&] { TunedLookup(layers, kMachine, kBuckets, choices); });
}

// Buckets of kBuckets: 1 to 8, 10, 12, 14, 16, 20 ...
TunedTable sized_table(const std::vector<std::pair<int64_t, std::string>>& choices) {
  TunedTable sized = table("sized.json", 0, "red", "x");
  sized.fields = {"colour", "size"};
  sized.runs.resize(2);
  sized.entries.clear();
  for (const auto& [size, choice] : choices)
    sized.entries.push_back({.key = {"red", size}, .choice = choice, .run = 0, .measured_us = {{choice, 1.0 * size}}});
  return sized;
}

TunedEntry range(int64_t from, int64_t to, const std::string& choice) {
  return {.key = {"red", to}, .from = from, .choice = choice, .run = 0, .measured_us = {{choice, 1.0 * to}}};
}

TEST(Tuning, ARangeHoldsForItsBuckets) {
  const std::vector<std::string_view> choices{"x", "y"};
  TunedLayers layers;
  TunedTable sized = sized_table({{5, "y"}});
  sized.entries.push_back(range(7, 12, "y"));
  sized.entries.push_back(range(14, 16, "x"));
  layers.tables[TunedLayers::given] = {sized};
  const TunedLookup lookup(layers, kMachine, kBuckets, choices);
  EXPECT_EQ(lookup.size(), 7u) << "5; 7, 8, 10, 12; 14, 16";
  for (const int64_t size : {5, 7, 8, 10, 12}) EXPECT_EQ(lookup.find({0, size}), 1) << size;
  for (const int64_t size : {14, 16}) EXPECT_EQ(lookup.find({0, size}), 0) << size;
  for (const int64_t size : {4, 6, 20}) EXPECT_EQ(lookup.find({0, size}), -1) << size;
  EXPECT_EQ(lookup.find({1, 8}), -1);
}

TEST(Tuning, RangesOfOtherBucketsAreRefused) {
  const std::vector<std::string_view> choices{"x", "y"};
  const auto resolve = [&](const TunedTable& bad, const TuneSpace& space) {
    TunedLayers layers;
    layers.tables[TunedLayers::given] = {bad};
    TunedLookup(layers, kMachine, space, choices);
  };
  TunedTable sized = sized_table({});
  sized.entries = {range(9, 12, "x")};
  expect_error(ErrorCode::bad_format, {"sized.json", "size=9 to 12", "ask for size=10"}, [&] { resolve(sized, kBuckets); });
  sized.entries = {range(8, 11, "x")};
  expect_error(ErrorCode::bad_format, {"sized.json", "size=8 to 11", "ask for size=12"}, [&] { resolve(sized, kBuckets); });
  sized.entries = {range(8, 12, "x")};
  expect_error(ErrorCode::bad_format, {"sized.json", "last field", "demo"}, [&] { resolve(sized, kSpace); });
}

TEST(Tuning, JoinedRangesSplitIntoTheSameBuckets) {
  const TunedTable sized = sized_table({{8, "x"}, {1, "x"}, {2, "x"}, {3, "y"}, {4, "y"}, {5, "y"}, {10, "x"}, {14, "x"}});
  TunedTable other_run = sized;
  other_run.entries[2].run = 1;  // of size 2
  const TunedTable joined = join_ranges(sized, kBuckets);
  std::string text;
  for (const TunedEntry& entry : joined.entries) text += key_text(joined, entry) + " " + entry.choice + "\n";
  EXPECT_EQ(text, "colour=red size=1 to 2 x\ncolour=red size=3 to 5 y\ncolour=red size=8 to 10 x\ncolour=red size=14 x\n")
      << "6, 7 and 12 are not tuned";
  ASSERT_EQ(joined.entries.size(), 4u);
  EXPECT_EQ(joined.entries[1].measured_us, (std::vector<std::pair<std::string, double>>{{"y", 5.0}})) << "of the largest";
  EXPECT_EQ(join_ranges(other_run, kBuckets).entries.size(), 5u) << "another run measured size 2";

  const TunedTable split = split_ranges(joined, kBuckets);
  text.clear();
  for (const TunedEntry& entry : split.entries) {
    EXPECT_EQ(entry.from, 0);
    text += fmt::format("{}{} ", to_string(entry.key[1]), entry.choice);
  }
  EXPECT_EQ(text, "1x 2x 3y 4y 5y 8x 10x 14x ");
  EXPECT_TRUE(split.entries[2].measured_us.empty());
  EXPECT_EQ(split.entries[4].measured_us.size(), 1u);
  const TunedTable again = join_ranges(split, kBuckets);
  ASSERT_EQ(again.entries.size(), 4u);
  EXPECT_EQ(again.entries[1].measured_us, joined.entries[1].measured_us);
  EXPECT_EQ(again.entries[1].from, 3);
}

TEST(Tuning, ConflictsInsideARangeAreFound) {
  TunedTable ranges = sized_table({});
  ranges.entries = {range(3, 10, "x"), range(12, 16, "y")};
  TunedTable one = sized_table({{8, "x"}});
  one.file = "one.json";
  const auto agree = [](const TunedTable& a, const TunedTable& b) {
    const std::vector<TunedTable> both{a, b};
    require_agreement(both);
  };
  agree(ranges, one);
  agree(ranges, sized_table({{2, "y"}, {11, "y"}}));
  one.entries[0].choice = "y";
  expect_error(ErrorCode::bad_format, {"sized.json says x", "one.json says y", "size=8"}, [&] { agree(ranges, one); });
  one.entries = {range(10, 12, "x")};
  expect_error(ErrorCode::bad_format, {"sized.json says y", "one.json says x"}, [&] { agree(ranges, one); });
  ranges.entries.push_back(range(1, 20, "x"));
  expect_error(ErrorCode::bad_format, {"sized.json says"}, [&] { require_agreement({&ranges, 1}); });
  TunedTable turned = one;
  turned.fields = {"size", "colour"};
  turned.entries = {{.key = {int64_t{8}, "red"}, .choice = "y", .run = 0, .measured_us = {}}};
  expect_error(ErrorCode::bad_format, {"size=8 colour=red", "says x", "says y"}, [&] {
    agree(sized_table({{8, "x"}}), turned);
  });
}

TEST(Tuning, ConflictIsRefusedWithBothChoices) {
  const std::vector<TunedTable> agree{table("a.json", 5, "red", "x"), table("b.json", 5, "red", "x")};
  require_agreement(agree);
  std::vector<TunedTable> differ{table("a.json", 5, "red", "x"), table("b.json", 5, "red", "y")};
  expect_error(ErrorCode::bad_format, {"a.json says x", "b.json says y", "size=5 colour=red", "sm_90 with 132"},
               [&] { require_agreement(differ); });
  differ[1].machine.architecture = "sm_100";
  require_agreement(differ);
}

TEST(Tuning, TableThenModelThenOneNotice) {
  Context context;
  tuned_layers(context).tables[TunedLayers::given] = {table("a", 5, "red", "demo.large")};
  StageTuning tuning = tuning_of(context);
  EXPECT_EQ(choice(context, tuning, {5}, {5, 0}), "demo.large");
  EXPECT_TRUE(context.notices().empty());
  EXPECT_EQ(choice(context, tuning, {7}, {6, 0}), "demo.small");
  EXPECT_EQ(choice(context, tuning, {50}, {50, 1}), "demo.large");
  ASSERT_EQ(context.notices().size(), 1u);
  EXPECT_EQ(context.notices()[0],
            "demo: not tuned for size=6 colour=red on sm_90 with 132 multiprocessors, a model of the crossover chooses; "
            "`mixlane tune --stage demo --size 6` measures it");
}

TEST(Tuning, NothingToChooseIsNoReasonForANotice) {
  Context context;
  StageTuning tuning = tuning_of(context);
  EXPECT_EQ(choice(context, tuning, {101}, {101, 0}), "demo.large");
  EXPECT_EQ(choice(context, tuning, {5}, {5, 0}, "demo.large"), "demo.large");
  EXPECT_EQ(choice(context, tuning, {1}, {1, 0}), "demo.small") << "ten times as fast by the model";
  EXPECT_TRUE(context.notices().empty());
}

TEST(Tuning, ChoiceThatRefusesTheCallGivesWay) {
  Context context;
  tuned_layers(context).tables[TunedLayers::given] = {table("a", 128, "red", "demo.small")};
  StageTuning tuning = tuning_of(context);
  EXPECT_EQ(choice(context, tuning, {101}, {128, 0}), "demo.large");
}

TEST(Tuning, TableLoadedLaterIsResolvedAgain) {
  Context context;
  StageTuning tuning = tuning_of(context);
  EXPECT_EQ(choice(context, tuning, {5}, {5, 0}), "demo.small");
  tuned_layers(context).tables[TunedLayers::given] = {table("a", 5, "red", "demo.large")};
  ++tuned_layers(context).version;
  EXPECT_EQ(choice(context, tuning, {5}, {5, 0}), "demo.large");
}

}  // namespace
}  // namespace mixlane
