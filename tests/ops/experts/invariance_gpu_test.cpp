// On GPUs: an expert's rows have the same bits whatever the other experts have, and with batch_invariant a pair's row
// whatever else is in the batch.
#include "gpu_case.hpp"

namespace mixlane::test {
namespace {

class ExpertsInvarianceGpu : public ExpertsOnGpu {
 protected:
  // Expert 0 has 300 pairs; of these, calls with fewer of them in other slots, beside other experts with other row counts.
  void check(const ExpertsShape& shape, uint64_t seed) {
    SCOPED_TRACE(testing::Message() << "format " << static_cast<int>(shape.format) << " " << name(shape.kind));
    ExpertsCase test(shape, seed);
    DeviceCall call(test.args());
    call.args.variant = GetParam();
    call.args.batch_invariant = true;
    if (!takes(call.args)) return;
    ++num_checked_;
    run(call);
    const std::vector<uint16_t> all = test.output;
    const std::vector<int32_t> pairs = test.sorted_pairs;
    const int64_t stride = shape.hidden + 8, first = test.offsets[0];
    const int most = test.shape.counts[0];
    std::vector<int> from(most);
    std::iota(from.begin(), from.end(), 0);
    for (const int count : {1, 2, 3, 8, 9, 16, 17, 33, 65, 81, 97, 130, 161, 257, most}) {
      std::shuffle(from.begin(), from.end(), test.rng);
      from[std::find(from.begin(), from.end(), 7) - from.begin()] = from[count / 2];
      from[count / 2] = 7;  // a row that is in all of them
      for (int i = 0; i < count; ++i) test.sorted_pairs[first + i] = pairs[first + from[i]];
      test.shape.counts = {count, count % 2 ? 0 : 40, count % 20};
      run(call);
      for (int i = 0; i < count; ++i)
        ASSERT_TRUE(std::equal(&test.output[(first + i) * stride], &test.output[(first + i) * stride] + shape.hidden,
                               &all[(first + from[i]) * stride]))
            << "row " << i << " of " << count << ", row " << from[i] << " of " << most;
    }
  }

  int num_checked_ = 0;
};
INSTANTIATE_TEST_SUITE_P(Variants, ExpertsInvarianceGpu, testing::ValuesIn(gpu_variants()), name_of_variant);

TEST_P(ExpertsInvarianceGpu, ARowsBitsAreItsOwn) {
  uint64_t seed = 1;
  for (const QuantFormat format : kFormats)
    for (const ActivationKind kind : {ActivationKind::swiglu, ActivationKind::swiglu_oai, ActivationKind::relu2}) {
      ExpertsShape shape;
      shape.hidden = 544;
      shape.intermediate = 384;
      shape.row_padding = 16;
      shape.format = format;
      shape.kind = kind;
      shape.bias = kind == ActivationKind::swiglu_oai;
      shape.fp8_rows = kind == ActivationKind::swiglu && quantises_activations(format);
      shape.input_weights = shape.fp8_rows;
      shape.counts = {300, 40, 20};
      check(shape, seed++);
    }
  EXPECT_GT(num_checked_, 0);
}

// Which kind of tile an expert gets may follow from its own rows alone.
TEST_P(ExpertsInvarianceGpu, AnExpertsBitsAreItsOwn) {
  for (const QuantFormat format : kFormats) {
    SCOPED_TRACE(testing::Message() << "format " << static_cast<int>(format));
    ExpertsShape shape;
    shape.hidden = 544;
    shape.intermediate = 384;
    shape.row_padding = 16;
    shape.format = format;
    shape.counts = {140, 300, 20};
    ExpertsCase test(shape, 5);
    DeviceCall call(test.args());
    call.args.variant = GetParam();
    if (!takes(call.args)) continue;
    ++num_checked_;
    const int64_t stride = shape.hidden + 8, first = test.offsets[0];
    for (const int count : {3, 12, 40, 70, 140}) {
      test.shape.counts = {count, 0, 0};
      run(call);
      const std::vector<uint16_t> alone = test.output;
      for (const auto& [second, third] : {std::pair{5, 20}, {40, 0}, {300, 17}}) {
        test.shape.counts = {count, second, third};
        run(call);
        for (int i = 0; i < count; ++i)
          ASSERT_TRUE(std::equal(&test.output[(first + i) * stride], &test.output[(first + i) * stride] + shape.hidden,
                                 &alone[(first + i) * stride]))
              << "row " << i << " of " << count << " beside " << second << " and " << third;
      }
    }
  }
  EXPECT_GT(num_checked_, 0);
}

}  // namespace
}  // namespace mixlane::test
