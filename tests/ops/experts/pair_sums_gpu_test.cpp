// Calls with pair_slots on GPUs: bit by bit the sums of what the same call gives per pair.
#include "gpu_case.hpp"
#include "pair_sums.hpp"

namespace mixlane::test {
namespace {

class ExpertsPairSumsGpu : public ExpertsOnGpu {};
INSTANTIATE_TEST_SUITE_P(Variants, ExpertsPairSumsGpu, testing::ValuesIn(gpu_variants()), name_of_variant);

TEST_P(ExpertsPairSumsGpu, AreThoseOfTheRowsPerPair) {
  uint64_t seed = 1;
  int num_checked = 0;
  for (const QuantFormat format : kFormats)
    for (const PairSumShape& of : kPairSumShapes)
      for (const DType dtype : {DType::bf16, DType::f32}) {
        ExpertsShape shape;
        shape.format = format;
        shape.hidden = 544;
        shape.intermediate = 96;
        shape.row_padding = 16;
        shape.counts = of.counts;
        shape.num_topk = of.num_topk;
        ExpertsCase test(shape, seed++);
        PairSumCase sums(test, dtype, of.num_segments);
        SCOPED_TRACE(testing::Message() << "format " << static_cast<int>(format) << " topk " << of.num_topk);
        DeviceCall rows(test.args());
        rows.args.variant = GetParam();
        if (!takes(rows.args)) continue;
        ++num_checked;
        run(rows);
        for (const bool with_weights : {true, false}) {
          std::fill(sums.output.begin(), sums.output.end(), ExpertsCase::kPoison);
          DeviceCall call(sums.args(with_weights));
          call.args.variant = GetParam();
          run(call);
          EXPECT_EQ(sums.output, sums.expected(with_weights)) << "with weights " << with_weights;
        }
      }
  EXPECT_GT(num_checked, 0);
}

// One graph, other pairs each time.
TEST_P(ExpertsPairSumsGpu, GraphReadsTheSlots) {
  ExpertsShape shape;
  shape.counts = {20, 3, 70};
  shape.row_padding = 16;
  shape.num_topk = 4;
  ExpertsCase test(shape, 50);
  PairSumCase sums(test, DType::bf16, 0);
  DeviceCall rows(test.args()), call(sums.args());
  rows.args.variant = call.args.variant = GetParam();
  run(rows);
  run(call);
  const gpu::Graph graph =
      gpu::Graph::capture(gpu_device(), [&](Stream capturing) { run_experts(*context_, call.args, capturing); });
  for (const int dropped : {0, 1, 5}) {
    for (size_t p = 0; p < sums.slots.size(); ++p)
      if (dropped > 0 && p % 6 < static_cast<size_t>(dropped)) sums.slots[p] = -1;
    call.send(stream_->get());
    graph.launch(stream_->get());
    call.fetch_output(stream_->get());
    EXPECT_EQ(sums.output, sums.expected()) << dropped << " of 6 dropped";
  }
}

TEST_P(ExpertsPairSumsGpu, NoExpertsOfOnesOwn) {
  int32_t zero = 0, slots[2] = {-1, -1};
  uint16_t row[16] = {}, output[16];
  std::fill_n(output, 16, ExpertsCase::kPoison);
  ExpertsArgs args;
  args.weights.hidden = args.weights.intermediate = 16;
  args.rows = ConstTensorView(row, DType::bf16, {1, 16});
  args.num_topk = 2;
  args.expert_offsets = ConstTensorView(&zero, DType::i32, {1});
  args.pair_slots = ConstTensorView(slots, DType::i32, {1, 2});
  args.output = TensorView(output, DType::bf16, {1, 16});
  DeviceCall call(args);
  call.args.sorted_pairs = ConstTensorView(nullptr, DType::i32, {0}, gpu_device());
  call.args.expert_counts = ConstTensorView(nullptr, DType::i32, {0}, gpu_device());
  call.args.variant = GetParam();
  run(call);
  EXPECT_TRUE(std::all_of(output, output + 16, [](uint16_t v) { return v == 0; }));
}

}  // namespace
}  // namespace mixlane::test
