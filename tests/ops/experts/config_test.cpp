// Configurations of experts.wgmma, without a GPU: candidates, estimates, and what the model picks where it was measured.
#include "ops/experts/wgmma/config.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "case.hpp"
#include "io/data_folder.hpp"
#include "io/tuned.hpp"

namespace mixlane::test {
namespace {

using Launches = WgmmaConfig::Launches;
using Tiles = WgmmaConfig::Tiles;

constexpr WgmmaConfig kUsual, kNarrow{Launches::fewest, Tiles::narrow}, kTwo{Launches::two, Tiles::wide};

WgmmaShape shape_of(QuantFormat format, int64_t experts, int64_t hidden, int64_t intermediate, double pairs) {
  return {.format = format,
          .gated = true,
          .num_experts = experts,
          .hidden = hidden,
          .intermediate = intermediate,
          .num_pairs = pairs,
          .num_multiprocessors = 132};
}
WgmmaShape deepseek_of_8(QuantFormat format, double pairs) { return shape_of(format, 32, 7168, 2048, pairs); }

TEST(WgmmaConfig, CandidatesOfFormats) {
  EXPECT_EQ(wgmma_candidates(QuantFormat::none), (std::vector{kUsual, kNarrow, kTwo}));
  EXPECT_EQ(wgmma_candidates(QuantFormat::fp8_block), (std::vector{kUsual, kNarrow, kTwo}));
  EXPECT_EQ(wgmma_candidates(QuantFormat::fp8_channel), (std::vector{kUsual, kNarrow}));
  EXPECT_EQ(wgmma_candidates(QuantFormat::mxfp4), std::vector{kUsual});
  EXPECT_EQ(wgmma_candidates(QuantFormat::mxfp4_fp8), std::vector{kUsual});
}

TEST(WgmmaConfig, LaunchesAreWhatAConfigurationSaysOrAFormatNeeds) {
  for (const QuantFormat format : kFormats) {
    const bool single = format == QuantFormat::none || format == QuantFormat::fp8_block;
    EXPECT_EQ(num_wgmma_launches(format, kUsual), single ? 1 : 2) << name(format);
    EXPECT_EQ(num_wgmma_launches(format, kTwo), 2) << name(format);
  }
}

TEST(WgmmaConfig, IdsAreDistinctAndSoAreConfigurations) {
  for (size_t i = 0; i < kWgmmaConfigs.size(); ++i) {
    EXPECT_EQ(kWgmmaConfigs[i].id.substr(0, 13), "experts.wgmma");
    EXPECT_FALSE(kWgmmaConfigs[i].summary.empty());
    for (size_t j = 0; j < i; ++j) {
      EXPECT_NE(kWgmmaConfigs[i].id, kWgmmaConfigs[j].id);
      EXPECT_NE(kWgmmaConfigs[i].config, kWgmmaConfigs[j].config);
    }
  }
}

TEST(WgmmaConfig, EstimatesGrowWithPairsAndShrinkWithMultiprocessors) {
  for (const QuantFormat format : kFormats)
    for (const WgmmaConfig config : wgmma_candidates(format))
      for (const auto& [experts, hidden, intermediate] :
           {std::array<int64_t, 3>{1, 16, 16}, {8, 4096, 14336}, {32, 7168, 2048}, {128, 2048, 768}, {1024, 2880, 2880}}) {
        double last = 0;
        for (double pairs = 0; pairs < 3e6; pairs = pairs * 1.1 + 1) {
          const WgmmaShape shape = shape_of(format, experts, hidden, intermediate, pairs);
          const double us = estimate_wgmma_us(shape, config);
          ASSERT_TRUE(std::isfinite(us) && us > 0) << name(format) << " " << experts << " experts, " << pairs << " pairs";
          ASSERT_GE(us, last * 0.995) << name(format) << " " << experts << " experts, " << pairs << " pairs";
          last = std::max(last, us);
          WgmmaShape half = shape;
          half.num_multiprocessors = 66;
          ASSERT_LT(us, estimate_wgmma_us(half, config));
          WgmmaShape ungated = shape;
          ungated.gated = false;
          ASSERT_LE(estimate_wgmma_us(ungated, config), us);
        }
      }
}

TEST(WgmmaConfig, PicksOfKnownShapes) {
  for (const double pairs : {1., 8., 128., 512., 2048., 4096.}) {
    EXPECT_EQ(pick_wgmma_config(deepseek_of_8(QuantFormat::none, pairs)), kUsual) << pairs;
    EXPECT_EQ(pick_wgmma_config(deepseek_of_8(QuantFormat::fp8_block, pairs)), kUsual) << pairs;
    EXPECT_EQ(pick_wgmma_config(deepseek_of_8(QuantFormat::mxfp4, pairs)), kUsual) << pairs;
  }
  EXPECT_EQ(pick_wgmma_config(deepseek_of_8(QuantFormat::fp8_block, 32768)), kTwo);
  EXPECT_EQ(pick_wgmma_config(deepseek_of_8(QuantFormat::fp8_channel, 512)), kUsual);
  EXPECT_EQ(pick_wgmma_config(deepseek_of_8(QuantFormat::fp8_channel, 4096)), kNarrow);
  EXPECT_EQ(pick_wgmma_config(deepseek_of_8(QuantFormat::fp8_channel, 8192)), kUsual);
  EXPECT_EQ(pick_wgmma_config(deepseek_of_8(QuantFormat::fp8_channel, 65536)), kUsual);
}

TEST(WgmmaConfig, ExpectedPairsFollowFromTheRouter) {
  ExpertsCase test(ExpertsShape{}, 1);
  ExpertsArgs args = test.args();
  args.rows.shape[0] = 100;
  const auto pairs = [&](int experts, int topk) {
    args.weights.num_experts = experts;
    args.num_topk = topk;
    return wgmma_shape(args, 132).num_pairs;
  };
  EXPECT_DOUBLE_EQ(pairs(8, 2), 100 * 2 * 8 / 12.0);
  EXPECT_EQ(pairs(128, 4), 400);
  EXPECT_EQ(pairs(256, 8), 800);
  EXPECT_NEAR(pairs(32, 8), 133.3, 0.1);
  args.sorted_pairs = {};
  EXPECT_EQ(pairs(1, 1), 100) << "a dense expert has all rows";
}

// What the fallback loses where the winner is known: the tuned table's times of all candidates.
TEST(WgmmaConfig, TheModelPicksWhatWasMeasured) {
  const TunedTable table = read_tuned(data_folder("tuned") / "experts.sm_90-132.json");
  double sum = 0;
  int count = 0, num_far = 0;
  for (const TunedEntry& entry : table.entries) {
    const auto number = [&](size_t field) { return std::get<int64_t>(entry.key[field]); };
    ExpertsCase test(ExpertsShape{}, 1);
    ExpertsArgs args = test.args();
    args.weights.format = quant_format_from_name(std::get<std::string>(entry.key[0]));
    args.weights.num_experts = static_cast<int>(number(1));
    args.weights.hidden = static_cast<int>(number(2));
    args.weights.intermediate = static_cast<int>(number(3));
    args.num_topk = static_cast<int>(number(4));
    args.rows.shape[0] = number(5);
    const WgmmaConfig picked = pick_wgmma_config(wgmma_shape(args, 132));
    double best = INFINITY, of_picked = 0;
    for (const auto& [id, us] : entry.measured_us) {
      best = std::min(best, us);
      for (const NamedWgmmaConfig& named : kWgmmaConfigs)
        if (named.id == id && named.config == picked) of_picked = us;
    }
    ASSERT_GT(of_picked, 0) << key_text(table, entry);
    const double regret = of_picked / best - 1;
    EXPECT_LE(regret, 0.25) << key_text(table, entry) << ": " << of_picked << " us, best " << best;
    num_far += regret > 0.05;
    sum += regret;
    ++count;
  }
  ASSERT_GT(count, 100);
  EXPECT_LE(num_far, count / 33) << "of " << count << " beyond 5 %";
  EXPECT_LE(sum / count, 0.006);
}

}  // namespace
}  // namespace mixlane::test
