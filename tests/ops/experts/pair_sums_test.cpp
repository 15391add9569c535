// Calls with pair_slots on the CPU: bit by bit the sums of what the same call gives per pair.
#include "pair_sums.hpp"

#include "ops/experts/op.hpp"
#include "support/errors.hpp"

namespace mixlane::test {
namespace {

std::vector<std::string> cpu_variants() {
  Context context({{}, 1});
  std::vector<std::string> ids{"experts.reference"};
  if (onednn_missing(context).empty()) ids.emplace_back("experts.onednn");
  return ids;
}

TEST(ExpertsPairSums, AreThoseOfTheRowsPerPair) {
  uint64_t seed = 1;
  for (const std::string& variant : cpu_variants())
    for (const QuantFormat format : kFormats)
      for (const PairSumShape& of : kPairSumShapes)
        for (const DType dtype : {DType::bf16, DType::f32}) {
          ExpertsShape shape;
          shape.format = format;
          shape.counts = of.counts;
          shape.num_topk = of.num_topk;
          ExpertsCase test(shape, seed++);
          PairSumCase sums(test, dtype, of.num_segments);
          SCOPED_TRACE(testing::Message() << variant << " format " << static_cast<int>(format) << " topk " << of.num_topk);
          Context context({{}, 2});
          ExpertsArgs rows = test.args();
          rows.variant = variant;
          run_experts(context, rows);
          for (const bool with_weights : {true, false}) {
            ExpertsArgs args = sums.args(with_weights);
            args.variant = variant;
            std::fill(sums.output.begin(), sums.output.end(), ExpertsCase::kPoison);
            run_experts(context, args);
            EXPECT_EQ(sums.output, sums.expected(with_weights)) << "with weights " << with_weights;
          }
        }
}

TEST(ExpertsPairSums, NamesArgumentValueAndRule) {
  const auto refused = [](const std::vector<std::string>& mentions, const auto& change) {
    ExpertsCase test(ExpertsShape{}, 1);
    PairSumCase sums(test, DType::bf16, 0);
    ExpertsArgs args = sums.args();
    change(sums, args);
    Context context({{}, 1});
    expect_error(ErrorCode::invalid_argument, mentions, [&] { run_experts(context, args); });
    EXPECT_TRUE(std::all_of(sums.output.begin(), sums.output.end(), [](uint16_t v) { return v == ExpertsCase::kPoison; }));
  };
  refused({"topk_weights is f32[23, 2]", "needs pair_slots"}, [](auto&, auto& a) { a.pair_slots = {}; });
  refused({"pair_slots is i32[22, 2]", "[23, 2]"}, [](auto&, auto& a) { a.pair_slots.shape[0] = 22; });
  refused({"output is bf16[20, 64]", "[23, 64]"}, [](auto&, auto& a) { a.output.shape[0] = 20; });
  refused({"pair_slots[", "sorted_pairs[5] is "}, [](auto& s, auto&) { s.slots[0] = 5; });
  refused({"segment_rows has 5 segments", "23 rows"}, [](auto& s, auto& a) {
    s.segments.assign(5, 1);
    a.segment_rows = ConstTensorView(s.segments.data(), DType::i32, {5});
  });
  refused({"a dense expert's rows are one pair each"}, [](auto&, auto& a) {
    a.weights.num_experts = 1;
    for (ConstTensorView* view : {&a.weights.gate_up, &a.weights.down}) view->shape[0] = 1;
    a.num_topk = 1;
    a.sorted_pairs = a.expert_counts = a.expert_offsets = {};
  });
}

// A rank whose experts none of the pairs chose, and one without experts: zeros.
TEST(ExpertsPairSums, NoExpertsOfOnesOwn) {
  Context context({{}, 1});
  const int32_t zero = 0, slots[2] = {-1, -1};
  const uint16_t row[16] = {};
  uint16_t output[16];
  std::fill_n(output, 16, ExpertsCase::kPoison);
  ExpertsArgs args;
  args.weights.hidden = args.weights.intermediate = 16;
  args.rows = ConstTensorView(row, DType::bf16, {1, 16});
  args.num_topk = 2;
  args.sorted_pairs = ConstTensorView(nullptr, DType::i32, {0});
  args.expert_counts = ConstTensorView(nullptr, DType::i32, {0});
  args.expert_offsets = ConstTensorView(&zero, DType::i32, {1});
  args.pair_slots = ConstTensorView(slots, DType::i32, {1, 2});
  args.output = TensorView(output, DType::bf16, {1, 16});
  run_experts(context, args);
  EXPECT_TRUE(std::all_of(output, output + 16, [](uint16_t v) { return v == 0; }));
}

}  // namespace
}  // namespace mixlane::test
