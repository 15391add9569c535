// batch_invariant on the CPU: experts.reference keeps it always, experts.onednn refuses it.
#include "case.hpp"
#include "ops/experts/op.hpp"
#include "support/errors.hpp"

namespace mixlane::test {
namespace {

TEST(ExpertsBatchInvariance, IsTheReferences) {
  Context context({{}, 1});
  ExpertsCase test(ExpertsShape{}, 1);
  ExpertsArgs args = test.args();
  args.batch_invariant = true;
  EXPECT_EQ(select_experts(context, args).info.id, "experts.reference");
  if (!onednn_missing(context).empty()) return;
  args.variant = "experts.onednn";
  expect_error(ErrorCode::unsupported, {"experts.onednn", "batch_invariant"}, [&] { run_experts(context, args); });
}

// Bits of a row alone and among others, in other slots; each time beside other experts.
TEST(ExpertsBatchInvariance, RowsOfTheReference) {
  for (const QuantFormat format : kFormats) {
    ExpertsShape shape;
    shape.format = format;
    shape.counts = {70, 9};
    ExpertsCase test(shape, 2);
    ExpertsArgs args = test.args();
    args.batch_invariant = true;
    Context context({{}, 2});
    run_experts(context, args);
    const std::vector<uint16_t> all = test.output;
    const std::vector<int32_t> pairs = test.sorted_pairs;
    const int64_t stride = shape.hidden + 8, first = test.offsets[0];
    for (const int count : {1, 3, 17, 65}) {
      test.shape.counts = {count, count % 3};
      for (int i = 0; i < count; ++i) test.sorted_pairs[first + i] = pairs[first + 69 - i];
      run_experts(context, args);
      for (int i = 0; i < count; ++i)
        EXPECT_TRUE(std::equal(&test.output[(first + i) * stride], &test.output[(first + i) * stride] + shape.hidden,
                               &all[(first + 69 - i) * stride]))
            << "format " << static_cast<int>(format) << " row " << i << " of " << count;
    }
  }
}

}  // namespace
}  // namespace mixlane::test
