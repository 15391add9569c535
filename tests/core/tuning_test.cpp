// Keys, look-ups and the choice between tuned tables and the model; a table of variants that run nowhere.
#include "core/tuning.hpp"

#include <gtest/gtest.h>

#include "support/errors.hpp"

namespace mixlane {
namespace {

using test::expect_error;

constexpr std::string_view kWords[] = {"red", "blue"};
constexpr TuneField kFields[] = {{"size"}, {"colour", kWords}};
constexpr TuneSpace kSpace{"demo", kFields, [](const PackedKey& key) { return fmt::format(" --size {}", key[0]); }};
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

TEST(Tuning, BucketsCoverAllSizesAndHoldTheirBorders) {
  EXPECT_EQ(token_bucket(0), 1);
  for (const int64_t topk : {1, 2, 5, 6, 8, 22, 1000}) {
    int64_t last = 0;
    for (int64_t tokens = 1; tokens * topk <= 1 << 20; ++tokens) {
      const int64_t bucket = token_bucket(tokens, topk);
      ASSERT_GE(bucket, tokens) << topk;
      ASSERT_GE(bucket, last) << topk;
      ASSERT_LE(bucket * topk, std::max<int64_t>(tokens * topk * 3 / 2, 2)) << tokens;
      ASSERT_EQ(token_bucket(bucket, topk), bucket) << topk;
      last = bucket;
    }
  }
  EXPECT_EQ(token_bucket(5), 6);
  EXPECT_EQ(token_bucket(7), 8);
  EXPECT_EQ(token_bucket(17, 6), 21);  // 128 pairs and no more
  EXPECT_EQ(token_bucket(22, 6), 32);  // 192 pairs
  EXPECT_EQ(token_bucket(int64_t{1} << 30, 8), 131072);
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
