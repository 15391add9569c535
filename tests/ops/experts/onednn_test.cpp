// experts.onednn beyond its values: the module on demand, row counts around its borders, agreement with the reference.
#include <cstdlib>

#include "case.hpp"
#include "ops/experts/op.hpp"
#include "support/errors.hpp"

namespace mixlane::test {
namespace {

class ScopedModules {
 public:
  explicit ScopedModules(const char* folder) { setenv("MIXLANE_MODULES", folder, 1); }
  ~ScopedModules() { unsetenv("MIXLANE_MODULES"); }
};

TEST(Onednn, WithoutItsModule) {
  const ScopedModules modules("/nowhere");
  Context context({{}, 1});
  ExpertsCase test({}, 1);
  ExpertsArgs args = test.args();
  args.variant = "experts.onednn";
  expect_error(ErrorCode::missing_component, {"/nowhere/mixlane_onednn.so", "libdnnl", "MIXLANE_MODULES"},
               [&] { run_experts(context, args); });
  args.variant = "auto";
  EXPECT_EQ(select_experts(context, args).info.id, "experts.reference");
  EXPECT_NE(onednn_missing(context).find("libdnnl"), std::string::npos);
  run_experts(context, args);
  EXPECT_LE(test.relative_error(test.expected()), 4e-3);
}

TEST(Onednn, IsTheFirstChoice) {
  Context context({{}, 1});
  if (!onednn_missing(context).empty()) GTEST_SKIP() << onednn_missing(context);
  ExpertsCase test({}, 1);
  EXPECT_EQ(select_experts(context, test.args()).info.id, "experts.onednn");
}

// Streaming up to 4 rows, products in units of 16, tiles of 256; both sides of each, with the reference as the measure.
TEST(Onednn, AgreesWithTheReferenceAroundEveryBorder) {
  Context context({{}, 2});
  if (!onednn_missing(context).empty()) GTEST_SKIP() << onednn_missing(context);
  for (const QuantFormat format : kFormats) {
    ExpertsShape shape;
    shape.format = format;
    shape.hidden = 304;
    shape.intermediate = 144;
    shape.counts = {1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 31, 33, 255, 256, 257, 264, 265};
    shape.bias = true;
    ExpertsCase test(shape, 11);
    ExpertsArgs args = test.args();
    args.variant = "experts.reference";
    run_experts(context, args);
    std::vector<double> reference;
    for (int64_t s = 0; s < test.num_slots; ++s)
      for (int h = 0; h < shape.hidden; ++h) reference.push_back(bf16_to_f32(test.output[s * (shape.hidden + 8) + h]));
    args.variant = "experts.onednn";
    run_experts(context, args);
    // A sum on the other side of a rounding border moves a value by one bf16 step, or one e4m3 step inside.
    EXPECT_LE(test.relative_error(reference), 2e-3) << "format " << static_cast<int>(format);
  }
}

}  // namespace
}  // namespace mixlane::test
