// What run_experts refuses, the names of activations, and the work it reports.
#include "case.hpp"
#include "ops/experts/op.hpp"
#include "support/errors.hpp"

namespace mixlane::test {
namespace {

using Change = std::function<void(ExpertsCase&, ExpertsArgs&)>;

void expect_refused(const ExpertsShape& shape, const std::vector<std::string>& mentions, const Change& change) {
  Context context({{}, 1});
  ExpertsCase test(shape, 1);
  ExpertsArgs args = test.args();
  change(test, args);
  expect_error(ErrorCode::invalid_argument, mentions, [&] { run_experts(context, args); });
  EXPECT_TRUE(std::all_of(test.output.begin(), test.output.end(), [](uint16_t v) { return v == ExpertsCase::kPoison; }))
      << "written in spite of the error";
}

TEST(ExpertsArguments, NamesArgumentValueAndRule) {
  ExpertsShape bf16, fp8, mxfp4;
  fp8.format = QuantFormat::fp8_block;
  mxfp4.format = QuantFormat::mxfp4;
  expect_refused(bf16, {"weights.hidden is 60", "multiple of 16"}, [](auto&, auto& a) { a.weights.hidden = 60; });
  expect_refused(bf16, {"weights.gate_up is bf16[4, 96, 64]", "[4, 48, 64]"},
                 [](auto&, auto& a) { a.activation.kind = ActivationKind::relu2; });
  expect_refused(bf16, {"activation.limit is 0"}, [](auto&, auto& a) { a.activation.limit = 0; });
  expect_refused(bf16, {"weights.gate_up is bf16", "fp8_e4m3"},
                 [](auto&, auto& a) { a.weights.format = QuantFormat::fp8_channel; });
  expect_refused(bf16, {"weights.down is required"}, [](auto&, auto& a) { a.weights.down = {}; });
  expect_refused(bf16, {"bf16 weights have no scales"}, [](auto& t, auto& a) {
    a.weights.down_scales = ConstTensorView(t.row_scales.data(), DType::f32, {4, 64});
  });
  expect_refused(fp8, {"weights.gate_up_scales is f32[4, 1, 1]", "[4, 2, 1]"}, [](auto& t, auto& a) {
    a.weights.intermediate = 96;
    a.weights.gate_up = ConstTensorView(t.gate_up.bytes.data(), DType::fp8_e4m3, {4, 192, 64});
  });
  expect_refused(mxfp4, {"weights.down_scales is required", "e8m0"}, [](auto&, auto& a) { a.weights.down_scales = {}; });
  expect_refused(mxfp4, {"rows is fp8_e4m3"}, [](auto&, auto& a) { a.rows.dtype = DType::fp8_e4m3; });
  expect_refused(fp8, {"row_scales is required"}, [](auto& t, auto& a) {
    a.rows = ConstTensorView(t.rows_fp8.data(), DType::fp8_e4m3, {t.num_rows, 64});
  });
  expect_refused(bf16, {"num_topk is 0"}, [](auto&, auto& a) { a.num_topk = 0; });
  expect_refused(bf16, {"unknown variant 'experts.best'", "experts.reference"},
                 [](auto&, auto& a) { a.variant = "experts.best"; });
}

TEST(ExpertsArguments, SlotsOutsideTheTensors) {
  const ExpertsShape shape;
  expect_refused(shape, {"expert 3 has 41 rows from slot 12"}, [](auto& t, auto& a) {
    t.shape.counts[3] = 41;
    a.expert_counts.data = t.shape.counts.data();
  });
  expect_refused(shape, {"expert 1 has -1 rows"}, [](auto& t, auto&) { t.shape.counts[1] = -1; });
  expect_refused(shape, {"sorted_pairs[12] of expert 3 is 1000"}, [](auto& t, auto&) { t.sorted_pairs[12] = 1000; });
  expect_refused(shape, {"slots of sorted_pairs and output"}, [](auto&, auto& a) { a.output.shape[0] = 20; });
}

TEST(ExpertsArguments, DenseIsForOneExpert) {
  expect_refused({}, {"4 experts", "one dense expert"},
                 [](auto&, auto& a) { a.sorted_pairs = a.expert_counts = a.expert_offsets = {}; });
  expect_refused({}, {"sorted_pairs is required"}, [](auto&, auto& a) { a.sorted_pairs = {}; });
}

TEST(ExpertsArguments, NoExpertsOfOnesOwn) {
  Context context({{}, 1});
  const int32_t zero = 0;
  uint16_t row[16] = {};
  ExpertsArgs args;
  args.weights.hidden = args.weights.intermediate = 16;
  args.rows = ConstTensorView(row, DType::bf16, {1, 16});
  args.sorted_pairs = ConstTensorView(nullptr, DType::i32, {0});
  args.expert_counts = ConstTensorView(nullptr, DType::i32, {0});
  args.expert_offsets = ConstTensorView(&zero, DType::i32, {1});
  args.output = TensorView(nullptr, DType::bf16, {0, 16});
  EXPECT_NO_THROW(run_experts(context, args));
}

TEST(ExpertsArguments, ActivationNames) {
  for (const auto kind :
       {ActivationKind::swiglu, ActivationKind::swiglu_oai, ActivationKind::geglu_tanh, ActivationKind::relu2})
    EXPECT_EQ(activation_from_name(name(kind)), kind);
  expect_error(ErrorCode::invalid_argument, {"'gelu'", "swiglu_oai"}, [] { activation_from_name("gelu"); });
}

TEST(ExpertsCost, CountsTouchedWeightsRowsAndFlops) {
  ExpertsShape shape;
  shape.format = QuantFormat::fp8_block;
  shape.hidden = 256;
  shape.intermediate = 64;
  shape.bias = true;
  ExpertsCase test(shape, 1);
  const Cost cost = experts_cost(test.args(), 3, 44);
  const int64_t weights = 128 * 256 + 256 * 64, scales = (1 * 2 + 2 * 1) * 4, biases = (128 + 256) * 4;
  EXPECT_EQ(cost.bytes_read, 3 * (weights + scales + biases) + 44 * 256 * 2);
  EXPECT_EQ(cost.bytes_written, 44 * 256 * 2);
  EXPECT_EQ(cost.flops, 44 * 2 * weights);
}

}  // namespace
}  // namespace mixlane::test
