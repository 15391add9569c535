// "auto" on a GPU: tuned tables, the model where there is none, and what the context says about it.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "io/data_folder.hpp"
#include "io/tuned.hpp"
#include "mixlane/tuning.hpp"
#include "ops/align/choose.hpp"
#include "ops/align/op.hpp"
#include "support/files.hpp"
#include "support/gpu.hpp"

namespace mixlane {
namespace {

using namespace test;

class AlignChoice : public GpuTest {
 protected:
  // Ids of a shape that no installed table has.
  static constexpr int kRows = 2, kTopk = 5, kExperts = 77, kBlock = 16;

  AlignArgs args() {
    const int64_t capacity = align_capacity(kRows * kTopk, kExperts, kBlock);
    AlignArgs args;
    args.topk_ids = {ids_.data(), DType::i32, {kRows, kTopk}, gpu_device()};
    args.num_experts = kExperts;
    args.block = kBlock;
    args.sorted_pairs = {pairs_.data(), DType::i32, {capacity}, gpu_device()};
    args.num_padded = {padded_.data(), DType::i32, {2}, gpu_device()};
    return args;
  }

  static TunedTable table(const std::string& choice) {
    return {.file = "",
            .stage = "align",
            .machine = gpu_machine(gpu_device()),
            .fields = {"tokens", "experts", "topk", "ids"},  // another order than the stage's
            .runs = {{"2026-01-01T00:00:00Z", "a GPU", "a driver", "a commit", "a command"}},
            .entries = {{.key = {kRows, kExperts, kTopk, "i32"}, .choice = choice, .run = 0, .measured_us = {}}}};
  }

  gpu::Buffer ids_{};
  gpu::Buffer pairs_{};
  gpu::Buffer padded_{};
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    ids_ = gpu::Buffer(gpu_device(), kRows * kTopk * 4);
    pairs_ = gpu::Buffer(gpu_device(), align_capacity(kRows * kTopk, kExperts, kBlock) * 4);
    padded_ = gpu::Buffer(gpu_device(), 8);
  }
};

// Needs no GPU: what the library ships is for variants that this build has.
TEST(AlignTables, ShippedChoicesAreVariantsOfThisBuild) {
  if (gpu::kDeviceType != DeviceType::cuda) GTEST_SKIP() << "the tables are for NVIDIA GPUs";
  TunedLayers layers;
  layers.tables[TunedLayers::installed] = read_tuned_folder(data_folder("tuned"));
  std::vector<std::string_view> ids;
  for (const auto& variant : align_gpu_variants()) ids.push_back(variant.info.id);
  const TunedLookup lookup(layers, {"sm_90", 132}, align_tune_space(), ids);
  EXPECT_GT(lookup.size(), 1000u);
  const auto at = [](AlignIds kind, int64_t tokens) { return PackedKey{256, 8, static_cast<int64_t>(kind), tokens}; };
  for (const AlignIds kind : {AlignIds::i32, AlignIds::i64})
    for (const int64_t tokens : {1, 64, 131072}) EXPECT_GE(lookup.find(at(kind, tokens)), 0) << tokens;
}

// Half a table leaves every other call to the model.
TEST(AlignTables, ShippedShapesHaveEveryBucket) {
  const std::vector<TunedTable> tables = read_tuned_folder(data_folder("tuned"));
  for (const TunedTable& table : tables) {
    if (table.stage != "align") continue;
    ASSERT_EQ(table.fields, (std::vector<std::string>{"experts", "topk", "ids", "tokens"})) << table.file;
    std::map<std::vector<TuneValue>, std::set<int64_t>> tokens_of;
    for (const TunedEntry& entry : split_ranges(table, align_tune_space()).entries)
      tokens_of[{entry.key.begin(), entry.key.end() - 1}].insert(std::get<int64_t>(entry.key[3]));
    for (const auto& [shape, tuned] : tokens_of) {
      const int64_t topk = std::get<int64_t>(shape[1]);
      std::set<int64_t> wanted;
      for (int64_t next = 1; wanted.empty() || next > *wanted.rbegin(); next = *wanted.rbegin() + 1)
        if (!wanted.insert(kAlignBuckets.end(next, topk)).second) break;
      EXPECT_EQ(tuned, wanted) << table.file << ": " << to_string(shape[0]) << " x " << topk << " " << to_string(shape[2]);
    }
  }
}

// Whom the model expects to be the fastest for `tokens` x 8 pairs of 256 experts on an H200. Needs no GPU.
std::string_view modelled(int64_t tokens, DType type, bool in_window) {
  AlignArgs args;
  args.topk_ids = {nullptr, type, {tokens, 8}, {}};
  if (in_window) args.topk_ids.strides[0] = 64;
  args.num_experts = 256;
  std::string_view best;
  double best_us = INFINITY;
  for (const auto& variant : align_gpu_variants()) {
    const double us = variant.estimate_us(args, 132);
    EXPECT_GT(us, 0) << variant.info.id << " of " << tokens << " tokens";
    if (us >= best_us) continue;
    best = variant.info.id;
    best_us = us;
  }
  return best;
}

// Far from where the variants overtake each other.
TEST(AlignModel, KnowsWhoIsFastestWhere) {
  if (gpu::kDeviceType != DeviceType::cuda) GTEST_SKIP() << "the lines are an H200's";
  struct Ids {
    DType type;
    bool in_window;
  };
  for (const Ids& ids : {Ids{DType::i32, false}, Ids{DType::i64, false}, Ids{DType::i32, true}}) {
    SCOPED_TRACE(fmt::format("i64 {}, in a window {}", ids.type == DType::i64, ids.in_window));
    for (const int64_t few : {1, 64}) {
      const std::string_view picked = modelled(few, ids.type, ids.in_window);
      EXPECT_TRUE(picked == "align.none" || picked == "align.oneshot" || picked == "align.cluster") << few << ": " << picked;
    }
    EXPECT_NE(modelled(64, ids.type, ids.in_window), "align.none");
    EXPECT_EQ(modelled(4096, ids.type, ids.in_window), "align.cluster");
    EXPECT_EQ(modelled(131072, ids.type, ids.in_window), "align.multi_phase");
  }
}

TEST_F(AlignChoice, ModelChoosesAndSaysSoOnce) {
  Context context({.device = gpu_device()});
  EXPECT_EQ(select_align(context, args()).info.id, "align.none");
  AlignArgs other = args();
  other.num_experts = 78;
  select_align(context, other);
  ASSERT_EQ(context.notices().size(), 1u);
  EXPECT_NE(context.notices()[0].find("experts=77 topk=5 ids=i32 tokens=2"), std::string::npos) << context.notices()[0];
  EXPECT_NE(context.notices()[0].find("`mixlane tune --stage align --shapes 77x5 --ids i32`"), std::string::npos)
      << context.notices()[0];
}

TEST_F(AlignChoice, AnIdIsNoReasonForANotice) {
  Context context({.device = gpu_device()});
  AlignArgs by_policy = args();
  by_policy.variant = align_variant(2);
  EXPECT_EQ(select_align(context, by_policy).info.id, "align.multi_phase");
  EXPECT_TRUE(context.notices().empty());
}

TEST_F(AlignChoice, LoadedTableDecidesAlsoInACapturedGraph) {
  const TempFolder folder;
  write_file(folder / "mine.json", tuned_json(table("align.multi_phase")));
  Context context({.device = gpu_device()});
  load_tuned(context, (folder / "mine.json").string());
  EXPECT_EQ(select_align(context, args()).info.id, "align.multi_phase");
  EXPECT_TRUE(context.notices().empty());
  align(context, args());  // sizes the workspace
  gpu::OwnedStream stream(gpu_device());
  const gpu::Graph graph = gpu::Graph::capture(gpu_device(), [&](Stream captured) { align(context, args(), captured); });
  graph.launch(stream.get());
  int32_t padded[2] = {0, 0};
  gpu::copy(padded, padded_.data(), sizeof(padded), stream.get());
  gpu::synchronize(stream.get());
  EXPECT_EQ(padded[0], 16);  // all ids are 0
  EXPECT_EQ(padded[1], kRows * kTopk);
}

TEST_F(AlignChoice, FreshContextReadsTheTablesInsideACapture) {
  const TempFolder folder;
  write_file(folder / "mine.json", tuned_json(table("align.radix")));
  Context context({.device = gpu_device()});
  const gpu::Graph graph = gpu::Graph::capture(gpu_device(), [&](Stream captured) {
    load_tuned(context, folder.path().string());
    EXPECT_EQ(select_align(context, args()).info.id, "align.radix");
    align(context, args(), captured);
  });
  gpu::OwnedStream stream(gpu_device());
  graph.launch(stream.get());
  gpu::synchronize(stream.get());
}

TEST_F(AlignChoice, LaterTableIsResolvedAgain) {
  const TempFolder folder;
  write_file(folder / "mine.json", tuned_json(table("align.oneshot")));
  Context context({.device = gpu_device()});
  EXPECT_EQ(select_align(context, args()).info.id, "align.none");
  load_tuned(context, folder.path().string());
  EXPECT_EQ(select_align(context, args()).info.id, "align.oneshot");
}

}  // namespace
}  // namespace mixlane
