// expert_major on the CPU: every pair's row lies in its slot, pads are zero, nothing behind them is touched.
#include <gtest/gtest.h>

#include "ops/expert_major/sorted_case.hpp"
#include "support/errors.hpp"

namespace mixlane {
namespace {

using test::SortedCase;

TEST(ExpertMajor, EveryPairsRowLiesInItsSlot) {
  for (const SortedCase& c : test::sorted_cases()) {
    std::vector<uint16_t> output(static_cast<size_t>(c.capacity * c.hidden), 0xffff);
    std::vector<float> scales(static_cast<size_t>(c.capacity * c.num_scales), -1.0f);
    Context context({.num_threads = 2});
    expert_major(context, c.args(c.rows.data(), c.scales.data(), c.sorted_rows.data(), c.num_padded.data(), output.data(),
                                 scales.data()));
    EXPECT_EQ(output, c.expected_rows());
    EXPECT_EQ(scales, c.expected_scales());
  }
}

TEST(ExpertMajor, RefusalsNameTheArgument) {
  const SortedCase c(1, 7, 5, 64, 2, 16);
  std::vector<uint16_t> output(static_cast<size_t>(c.capacity * c.hidden));
  std::vector<float> scales(static_cast<size_t>(c.capacity * c.num_scales));
  Context context({.num_threads = 1});
  const auto good = [&] {
    return c.args(c.rows.data(), c.scales.data(), c.sorted_rows.data(), c.num_padded.data(), output.data(), scales.data());
  };
  const auto refused = [&](const std::vector<std::string>& words, const ExpertMajorArgs& args) {
    test::expect_error(ErrorCode::invalid_argument, words, [&] { expert_major(context, args); });
  };
  ExpertMajorArgs args = good();
  args.output_scales = {};
  refused({"scales is given without output_scales"}, args);
  args = good();
  args.output.shape[0] -= 1;
  refused({"output"}, args);
  args = good();
  args.rows = {};
  refused({"rows"}, args);
  args = good();
  args.variant = "expert_major.other";
  refused({"expert_major.other", "expert_major.cpu"}, args);
}

}  // namespace
}  // namespace mixlane
