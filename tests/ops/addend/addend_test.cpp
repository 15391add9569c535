// The addend op against plain double-precision loops.
#include <gtest/gtest.h>

#include <cmath>

#include "ops/addend/op.hpp"
#include "support/errors.hpp"
#include "support/random.hpp"

namespace mixlane {
namespace {

struct Case {
  int64_t num_tokens, hidden;
  bool shared, gate, zero;
};

class Addend : public testing::TestWithParam<Case> {};

TEST_P(Addend, SumsItsTerms) {
  const Case c = GetParam();
  test::Rng rng(11);
  const int64_t pitch = c.hidden + 8;  // strided rows
  const auto hidden = test::normal_bf16(rng, c.num_tokens * pitch);
  const auto shared = test::normal_bf16(rng, c.num_tokens * c.hidden);
  const auto gate = test::normal_bf16(rng, c.hidden, 0.3f);
  const auto zero_weights = test::normal_f32(rng, c.num_tokens);
  std::vector<float> output(c.num_tokens * c.hidden, NAN);

  Context context({.num_threads = 2});
  AddendArgs args;
  args.hidden = ConstTensorView(hidden.data(), DType::bf16, {c.num_tokens, c.hidden});
  args.hidden.strides[0] = pitch;
  if (c.shared) args.shared_rows = ConstTensorView(shared.data(), DType::bf16, {c.num_tokens, c.hidden});
  if (c.gate) args.shared_gate = ConstTensorView(gate.data(), DType::bf16, {c.hidden});
  if (c.zero) args.zero_weights = ConstTensorView(zero_weights.data(), DType::f32, {c.num_tokens});
  args.output = TensorView(output.data(), DType::f32, {c.num_tokens, c.hidden});
  add_local_terms(context, args);

  for (int64_t t = 0; t < c.num_tokens; ++t) {
    double logit = 0;
    for (int64_t i = 0; i < c.hidden; ++i)
      logit += static_cast<double>(bf16_to_f32(hidden[t * pitch + i])) * bf16_to_f32(gate[i]);
    const double factor = c.gate ? 1 / (1 + std::exp(-logit)) : 1;
    for (int64_t i = 0; i < c.hidden; ++i) {
      double expected = 0;
      if (c.shared) expected += factor * bf16_to_f32(shared[t * c.hidden + i]);
      if (c.zero) expected += static_cast<double>(zero_weights[t]) * bf16_to_f32(hidden[t * pitch + i]);
      EXPECT_NEAR(output[t * c.hidden + i], expected, 1e-5 * (1 + std::fabs(expected))) << "token " << t << " column " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Terms, Addend,
                         testing::Values(Case{5, 64, true, false, false}, Case{5, 72, true, true, false},
                                         Case{300, 200, true, true, true}, Case{7, 48, false, false, true},
                                         Case{0, 64, true, true, true}, Case{1, 16, true, false, true}));

TEST(AddendErrors, NameWhatIsMissing) {
  Context context;
  uint16_t row[16] = {};
  float out[16];
  AddendArgs args;
  args.hidden = ConstTensorView(row, DType::bf16, {1, 16});
  args.output = TensorView(out, DType::f32, {1, 16});
  test::expect_error(ErrorCode::invalid_argument, {"no term", "zero_weights"}, [&] { add_local_terms(context, args); });
  args.zero_weights = ConstTensorView(out, DType::f32, {2});
  test::expect_error(ErrorCode::invalid_argument, {"addend.zero_weights", "f32[2]", "[1]"},
                     [&] { add_local_terms(context, args); });
}

}  // namespace
}  // namespace mixlane
