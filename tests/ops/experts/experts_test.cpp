// Values of every variant against plain loops in double: format x activation x shape x skew.
#include "case.hpp"
#include "ops/experts/op.hpp"

namespace mixlane::test {
namespace {

// Rounding of the intermediate and of the result to bf16 dominates; a requantised intermediate may differ from the
// oracle's by one e4m3 step where f32 and double sums fall on different sides of a tie.
constexpr double kTolerance = 4e-3;

void expect_matches_oracle(const ExpertsShape& shape, const std::string& variant, int num_threads, uint64_t seed) {
  Context context({{}, num_threads});
  ExpertsCase test(shape, seed);
  ExpertsArgs args = test.args();
  args.variant = variant;
  run_experts(context, args);
  EXPECT_LE(test.relative_error(test.expected()), kTolerance);
  EXPECT_TRUE(test.pads_untouched());
  const std::vector<uint16_t> first = test.output;
  run_experts(context, args);
  EXPECT_EQ(first, test.output) << "a repeated call gives other bits";
}

std::vector<std::string> variants() {
  std::vector<std::string> ids;
  for (const VariantInfo& info : experts_variants())
    if (info.device == DeviceType::cpu) ids.emplace_back(info.id);
  return ids;
}

class ExpertsValues : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Variants, ExpertsValues, testing::ValuesIn(variants()), name_of_variant);

TEST_P(ExpertsValues, EveryFormatAndActivation) {
  uint64_t seed = 1;
  for (const QuantFormat format : kFormats)
    for (const ActivationKind kind : kKinds) {
      ExpertsShape shape;
      shape.hidden = 208;
      shape.intermediate = 176;
      shape.format = format;
      shape.kind = kind;
      shape.bias = kind == ActivationKind::swiglu_oai;
      shape.limit = kind == ActivationKind::swiglu_oai ? 0.7f : std::numeric_limits<float>::infinity();
      shape.counts = {3, 0, 1, 40, 9};
      SCOPED_TRACE(testing::Message() << "format " << static_cast<int>(format) << " activation " << name(kind));
      expect_matches_oracle(shape, GetParam(), 1 + static_cast<int>(seed % 3), seed);
      ++seed;
    }
}

TEST_P(ExpertsValues, SizesOfModels) {
  uint64_t seed = 100;
  for (const QuantFormat format : kFormats)
    for (const auto& [hidden, intermediate] : {std::pair{2880, 48}, {48, 2880}, {704, 1408}, {2304, 16}, {16, 16}}) {
      ExpertsShape shape;
      shape.hidden = hidden;
      shape.intermediate = intermediate;
      shape.format = format;
      shape.counts = {2, 17};
      shape.limit = 1.0f;
      SCOPED_TRACE(testing::Message() << "format " << static_cast<int>(format) << " H " << hidden << " I " << intermediate);
      expect_matches_oracle(shape, GetParam(), 2, seed++);
    }
}

TEST_P(ExpertsValues, Skew) {
  uint64_t seed = 200;
  for (const QuantFormat format : kFormats)
    for (const std::vector<int>& counts :
         {std::vector<int>{0, 0, 0}, {0, 300, 0}, {1}, {1, 1, 1, 1, 1, 1, 1}, {513, 2, 0, 7}}) {
      ExpertsShape shape;
      shape.format = format;
      shape.counts = counts;
      shape.num_topk = 3;
      shape.padding = 16;
      SCOPED_TRACE(testing::Message() << "format " << static_cast<int>(format) << " first count " << counts[0]);
      expect_matches_oracle(shape, GetParam(), 2, seed++);
    }
}

TEST_P(ExpertsValues, QuantisedRowsAndInputWeights) {
  uint64_t seed = 300;
  for (const QuantFormat format : kFormats)
    for (const bool fp8_rows : {false, true})
      for (const bool input_weights : {false, true}) {
        if (fp8_rows && !quantises_activations(format)) continue;
        ExpertsShape shape;
        shape.format = format;
        shape.hidden = 272;
        shape.fp8_rows = fp8_rows;
        shape.input_weights = input_weights;
        SCOPED_TRACE(testing::Message() << "format " << static_cast<int>(format) << " fp8 rows " << fp8_rows << " weights "
                                        << input_weights);
        expect_matches_oracle(shape, GetParam(), 1, seed++);
      }
}

TEST_P(ExpertsValues, ThreadsAndNeighboursDontChangeBits) {
  for (const QuantFormat format : kFormats) {
    ExpertsShape shape;
    shape.hidden = 528;
    shape.intermediate = 592;
    shape.format = format;
    shape.counts = {5, 30, 1, 260, 0, 8};
    ExpertsCase test(shape, 400);
    ExpertsArgs args = test.args();
    args.variant = GetParam();
    std::vector<uint16_t> first;
    for (const int num_threads : {1, 2, 5}) {
      Context context({{}, num_threads});
      run_experts(context, args);
      if (first.empty()) first = test.output;
      EXPECT_EQ(first, test.output) << num_threads << " threads, format " << static_cast<int>(format);
    }
    // The same pairs on expert 3 while every other expert has none.
    std::vector<int32_t> alone{0, 0, 0, 260, 0, 0};
    args.expert_counts.data = alone.data();
    std::fill(test.output.begin(), test.output.end(), ExpertsCase::kPoison);
    Context context({{}, 2});
    run_experts(context, args);
    const int64_t stride = shape.hidden + 8, begin = test.offsets[3] * stride;
    EXPECT_TRUE(std::equal(first.begin() + begin, first.begin() + begin + 260 * stride, test.output.begin() + begin));
  }
}

// A shared expert: no slots from align, slot i is row i.
TEST_P(ExpertsValues, Dense) {
  for (const int rows : {1, 7, 90}) {
    ExpertsShape shape;
    shape.counts = {rows};
    shape.num_topk = 1;
    shape.padding = 1;
    ExpertsCase test(shape, 350);
    test.make_dense();
    ExpertsArgs args = test.args();
    args.variant = GetParam();
    Context context({{}, 2});
    run_experts(context, args);
    const int64_t stride = shape.hidden + 8;
    const std::vector<uint16_t> want(test.output.begin() + test.offsets[0] * stride,
                                     test.output.begin() + (test.offsets[0] + rows) * stride);
    EXPECT_LE(test.relative_error(test.expected()), kTolerance);
    args.sorted_pairs = args.expert_counts = args.expert_offsets = {};
    args.rows.shape[0] = args.output.shape[0] = rows;
    run_experts(context, args);
    EXPECT_TRUE(std::equal(want.begin(), want.end(), test.output.begin()));
  }
}

TEST(Experts, NaNAndInfinityTravel) {
  for (const std::string& variant : variants())
    for (const int rows : {1, 20}) {
      ExpertsShape shape;
      shape.counts = {rows};
      ExpertsCase test(shape, 500);
      const int row = test.sorted_pairs[test.offsets[0]] / shape.num_topk;
      test.rows[row * (shape.hidden + shape.row_padding) + 5] = 0x7fc0;
      ExpertsArgs args = test.args();
      args.variant = variant;
      Context context({{}, 1});
      run_experts(context, args);
      EXPECT_TRUE(std::isnan(bf16_to_f32(test.output[test.offsets[0] * (shape.hidden + 8)]))) << variant;
    }
}

}  // namespace
}  // namespace mixlane::test
