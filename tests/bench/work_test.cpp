#include "measure/work.hpp"

#include <gtest/gtest.h>

#include "ops/experts/op.hpp"

namespace mixlane::bench {
namespace {

struct Rates {
  double copy_gbs = 0, exchange_gbs = 0, bf16_tflops = 0, fp8_tflops = 0;
};
Peaks peaks(const Rates& rates) {
  Peaks made;
  made.copy_gbs = rates.copy_gbs;
  made.exchange_gbs = rates.exchange_gbs;
  made.bf16_tflops = rates.bf16_tflops;
  made.fp8_tflops = rates.fp8_tflops;
  return made;
}

constexpr StageWork kProducts{.bytes = 1000, .flops = 4'000'000, .fp8_flops = 3'000'000};

TEST(SpeedOfLight, CountsFp8ProductsAtTheirOwnRate) {
  // 1 Mflop at 1 TFLOP/s and 3 at 2.
  const SpeedOfLight limit = speed_of_light({&kProducts, 1}, peaks({.copy_gbs = 10, .bf16_tflops = 1, .fp8_tflops = 2}));
  EXPECT_DOUBLE_EQ(limit.us, 2.5);
  EXPECT_EQ(limit.bound, "matrix");
}

TEST(SpeedOfLight, CountsFp8ProductsAsBf16WhereTheMachineHasNone) {
  const SpeedOfLight limit = speed_of_light({&kProducts, 1}, peaks({.copy_gbs = 10, .bf16_tflops = 1}));
  EXPECT_DOUBLE_EQ(limit.us, 4);
}

TEST(SpeedOfLight, IsTheLargestOfMemoryLinkAndProductsOfAllRanks) {
  const StageWork ranks[] = {{.bytes = 3000, .remote_bytes = 500}, {.bytes = 1000, .remote_bytes = 500}};
  EXPECT_DOUBLE_EQ(speed_of_light(ranks, peaks({.copy_gbs = 1, .exchange_gbs = 1})).us, 4);
  EXPECT_EQ(speed_of_light(ranks, peaks({.copy_gbs = 1, .exchange_gbs = 1})).bound, "memory");
  EXPECT_EQ(speed_of_light(ranks, peaks({.copy_gbs = 100, .exchange_gbs = 1})).bound, "link");
  EXPECT_EQ(speed_of_light(ranks, Peaks{}).bound, "none");
}

TEST(StageWork, OfExpertsKnowsWhichProductsAreFp8) {
  ExpertsArgs args;
  args.weights.hidden = 256;
  args.weights.intermediate = 128;
  args.weights.format = QuantFormat::fp8_block;
  const StageWork fp8 = work_of(experts_cost(args, 0, 3));
  EXPECT_GT(fp8.flops, 0);
  EXPECT_EQ(fp8.fp8_flops, fp8.flops);
  args.weights.format = QuantFormat::none;
  EXPECT_EQ(work_of(experts_cost(args, 0, 3)).fp8_flops, 0);
}

TEST(SetFigures, WritesTheStatisticTheWorstRanksWorkAndTheLimitOfAll) {
  StageRecord row;
  const StageWork ranks[] = {{.bytes = 1000}, {.bytes = 3000, .flops = 7}};
  const std::vector<double> samples{8.00004, 7.9996, 8};
  set_figures(row, samples, 0.01, ranks, peaks({.copy_gbs = 1}));
  EXPECT_EQ(row.samples_us, (std::vector<double>{8, 8, 8}));
  EXPECT_EQ(row.time.n, 3);
  EXPECT_DOUBLE_EQ(row.time.median_us, 8);
  EXPECT_EQ(row.bytes, 3000);
  EXPECT_EQ(row.flops, 7);
  EXPECT_DOUBLE_EQ(row.sol_us, 4);
  EXPECT_DOUBLE_EQ(row.sol_share, 0.5);
  EXPECT_EQ(row.bound, "memory");
}

}  // namespace
}  // namespace mixlane::bench
