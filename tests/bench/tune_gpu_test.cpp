// Tuning for real: a small sweep, its table in a context that has never tuned, and refusal during a capture.
#include <gtest/gtest.h>

#include "core/tuning.hpp"
#include "io/tuned.hpp"
#include "mixlane/tuning.hpp"
#include "ops/experts/wgmma/config.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"
#include "support/gpu.hpp"
#include "tune/align_regret.hpp"
#include "tune/align_sweep.hpp"
#include "tune/experts_regret.hpp"
#include "tune/experts_sweep.hpp"

namespace mixlane::bench {
namespace {

using namespace mixlane::test;

class TuneGpu : public GpuTest {
 protected:
  static AlignSweep small_sweep() {
    AlignSweep sweep;
    sweep.shapes = {{24, 3, AlignIds::i32}, {24, 3, AlignIds::i64}, {24, 3, AlignIds::window}};
    sweep.tokens = {1, 64, 4096};
    sweep.block = 16;
    return sweep;
  }
  static TuningRun run() { return {"2026-01-01T00:00:00Z", "GPU", "driver", "commit", "command"}; }
};

TEST_F(TuneGpu, ChoosesTheFastestAndAFreshContextFollows) {
  Context context({.device = gpu_device()});
  const TunedTable table = tune_align(context, small_sweep(), run(), {});
  ASSERT_EQ(table.entries.size(), 9u);
  for (const TunedEntry& entry : table.entries) {
    SCOPED_TRACE(key_text(table, entry));
    double best = 1e9, chosen = 0;
    for (const auto& [id, us] : entry.measured_us) {
      best = std::min(best, us);
      if (id == entry.choice) chosen = us;
    }
    EXPECT_GT(chosen, 0);
    EXPECT_LE(chosen, best * 1.3);  // it is to be good for smaller sizes and skewed ids as well
  }
  // One token on hundreds of multiprocessors: barriers of the grid can't win.
  EXPECT_NE(table.entries[0].choice, "align.multi_phase");

  const TempFolder folder;
  write_file(folder / tuned_file_name(table), tuned_json(table));
  Context fresh({.device = gpu_device()});
  load_tuned(fresh, folder.path().string());
  for (const AlignShapeKey& shape : small_sweep().shapes) {
    const AlignIdsOnGpu ids(gpu_device(), shape, AlignSkew::uniform, 64);
    const AlignCase align_case(fresh, ids, 60, 128);  // another size of the same bucket, another block
    const PackedKey key = align_key(align_case.args("auto"));
    const auto entry = std::find_if(table.entries.begin(), table.entries.end(), [&](const TunedEntry& e) {
      return key_text(table, e) == key_text(align_tune_space(), key);
    });
    ASSERT_NE(entry, table.entries.end());
    EXPECT_EQ(select_align(fresh, align_case.args("auto")).info.id, entry->choice);
  }
  EXPECT_TRUE(fresh.notices().empty());
}

TEST_F(TuneGpu, PlacesOfACaseLieApart) {
  Context context({.device = gpu_device()});
  for (const AlignIds kind : {AlignIds::i32, AlignIds::i64, AlignIds::window}) {
    const AlignIdsOnGpu ids(gpu_device(), {24, 3, kind}, AlignSkew::uniform, 1000);
    EXPECT_EQ(AlignCase(context, ids, 1000, 16).num_places(), 1);
    EXPECT_EQ(AlignCase(context, ids, 400, 16).num_places(), 2);
    const AlignCase align_case(context, ids, 100, 16);
    ASSERT_EQ(align_case.num_places(), 4);
    const AlignArgs first = align_case.args("align.none");
    const int64_t row_bytes = first.topk_ids.strides[0] * (kind == AlignIds::i64 ? 8 : 4);
    const auto distance = [](const auto& from, const auto& to) {
      return static_cast<const std::byte*>(to.data) - static_cast<const std::byte*>(from.data);
    };
    for (int place = 1; place < 4; ++place) {
      const AlignArgs before = align_case.args("align.none", place - 1), here = align_case.args("align.none", place);
      EXPECT_GE(distance(before.topk_ids, here.topk_ids), 100 * row_bytes);
      EXPECT_LE(distance(first.topk_ids, here.topk_ids), 900 * row_bytes) << "the last one's ids end with the buffer";
      EXPECT_EQ(distance(first.topk_ids, here.topk_ids) % 16, 0);
      EXPECT_GE(distance(before.sorted_pairs, here.sorted_pairs), before.sorted_pairs.shape[0] * 4);
      EXPECT_GE(distance(before.block_experts, here.block_experts), before.block_experts.shape[0] * 4);
      EXPECT_GE(distance(before.num_padded, here.num_padded), 8);
      validate(context, here);
    }
  }
}

// A small model's experts on one of two ranks.
ExpertsSweep small_experts(std::vector<QuantFormat> formats, std::vector<int64_t> tokens) {
  Model model;
  model.name = "small";
  model.hidden = 256;
  model.intermediate = 128;
  model.routing.num_experts = 8;
  model.routing.num_topk = 2;
  ExpertsSweep sweep;
  sweep.models = {model};
  sweep.formats = std::move(formats);
  sweep.num_ranks = 2;
  sweep.tokens = std::move(tokens);
  return sweep;
}

TEST_F(TuneGpu, ChoosesAmongTheConfigurationsOfExperts) {
  Context context({.device = gpu_device()});
  if (gpu::compute_capability(0) != 90) GTEST_SKIP() << "one candidate here";
  const ExpertsSweep sweep = small_experts({QuantFormat::none, QuantFormat::fp8_block, QuantFormat::mxfp4_fp8}, {4, 300});
  const TunedTable table = tune_experts(context, sweep, run());
  // Of e2m1 weights there is one configuration; experts.mma is out of the question.
  ASSERT_EQ(table.entries.size(), 4u);
  for (const TunedEntry& entry : table.entries) {
    SCOPED_TRACE(key_text(table, entry));
    EXPECT_NE(key_text(table, entry).find("experts=4 hidden=256 intermediate=128 topk=2"), std::string::npos);
    ASSERT_EQ(entry.measured_us.size(), kWgmmaConfigs.size());
    for (const auto& [candidate, us] : entry.measured_us) EXPECT_GT(us, 0) << candidate;
  }
  const TempFolder folder;
  write_file(folder / tuned_file_name(table), tuned_json(table));
  Context fresh({.device = gpu_device()});
  EXPECT_NO_THROW(load_tuned(fresh, folder.path().string()));
}

TEST_F(TuneGpu, RegretOfExpertsNamesChosenAndBest) {
  if (gpu::compute_capability(0) != 90) GTEST_SKIP() << "one candidate here";
  Context context({.device = gpu_device()});
  const std::vector<ExpertsRegretPoint> points =
      experts_regret(context, small_experts({QuantFormat::fp8_channel}, {5, 200}), {parse_workload("balanced")});
  ASSERT_EQ(points.size(), 2u);
  for (const ExpertsRegretPoint& point : points) {
    ASSERT_EQ(point.median_us.size(), 2u);
    EXPECT_EQ(point.chosen, point.modelled) << "no table has this shape";
    EXPECT_GE(point.regret, 0);
    EXPECT_EQ(point.regret, point.model_regret);
  }
  EXPECT_NE(regret_text(points).find("| small / 2 | fp8_channel | balanced | 2 |"), std::string::npos)
      << regret_text(points);
}

TEST_F(TuneGpu, RefusedDuringACapture) {
  Context context({.device = gpu_device()});
  static_cast<void>(gpu::Graph::capture(gpu_device(), [&](Stream captured) {
    EXPECT_TRUE(gpu::is_capturing(captured));
    expect_error(ErrorCode::unsupported, {"captured", "before the capture"},
                 [&] { tune_align(context, small_sweep(), run(), captured); });
    expect_error(ErrorCode::unsupported, {"captured"}, [&] { align_regret(context, {}, captured); });
  }));
  const gpu::OwnedStream stream(gpu_device());
  EXPECT_FALSE(gpu::is_capturing(stream.get()));
}

TEST_F(TuneGpu, RegretNamesChosenAndBest) {
  Context context({.device = gpu_device()});
  RegretSweep sweep;
  sweep.shapes = {{24, 3, AlignIds::i32}};
  sweep.layouts = {{AlignSkew::zipf, 16}, {AlignSkew::one_expert, 16}};
  sweep.tokens = {1, 777};
  const std::vector<RegretPoint> points = align_regret(context, sweep, {});
  ASSERT_EQ(points.size(), 4u);
  for (const RegretPoint& point : points) {
    double best = 1e9, chosen = 0;
    for (const auto& [id, us] : point.median_us) {
      best = std::min(best, us);
      if (id == point.chosen) chosen = us;
    }
    EXPECT_DOUBLE_EQ(point.regret, chosen / best - 1);
    EXPECT_EQ(point.chosen, point.modelled) << "no table has this shape";
  }
  EXPECT_NE(regret_text(points).find("experts=24 topk=3 ids=i32 | zipf:1.2 | 16 | 2 |"), std::string::npos)
      << regret_text(points);
}

}  // namespace
}  // namespace mixlane::bench
