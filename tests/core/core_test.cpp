// Errors, dtypes, views, checks, arena, environment, registry.
#include <gtest/gtest.h>

#include <cstdlib>

#include "core/arena.hpp"
#include "core/check.hpp"
#include "core/env.hpp"
#include "core/registry.hpp"
#include "support/errors.hpp"

namespace mixlane {
namespace {

using test::expect_error;

TEST(DType, NamesRoundTripAndUnknownOnesListTheValid) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::i64, DType::fp8_e4m3, DType::fp4_e2m1, DType::e8m0})
    EXPECT_EQ(dtype_from_name(name(dtype)), dtype);
  expect_error(ErrorCode::invalid_argument, {"fp9", "bf16", "e8m0"}, [] { dtype_from_name("fp9"); });
}

TEST(DType, SizesCountBits) {
  EXPECT_EQ(size_bytes(DType::fp4_e2m1, 10), 5);
  EXPECT_EQ(size_bytes(DType::f64, 3), 24);
  expect_error(ErrorCode::invalid_argument, {"3", "fp4_e2m1"}, [] { size_bytes(DType::fp4_e2m1, 3); });
}

TEST(TensorView, DescribesItself) {
  float memory[12];
  TensorView view(memory, DType::f32, {3, 4});
  EXPECT_TRUE(view.contiguous());
  EXPECT_EQ(to_string(view), "f32[3, 4] on cpu");
  view.strides[0] = 8;
  EXPECT_FALSE(view.contiguous());
  EXPECT_EQ(to_string(view), "f32[3, 4] strides [8, 1] on cpu");
  EXPECT_EQ(to_string(TensorView()), "(not given)");
}

TEST(Check, NamesTheArgumentItsValueAndTheRule) {
  float memory[12];
  const TensorView view(memory, DType::f32, {3, 4});
  require_tensor("x", view, {{DType::f32}, {3, kAnySize}}, {});
  expect_error(ErrorCode::invalid_argument, {"logits", "f32[3, 4]", "bf16|f16 [3, 5]"}, [&] {
    require_tensor("logits", view, {{DType::bf16, DType::f16}, {3, 5}}, {});
  });
  expect_error(ErrorCode::invalid_argument, {"x is required"}, [&] { require_tensor("x", {}, {{DType::f32}, {1}}, {}); });
  expect_error(ErrorCode::invalid_argument, {"without memory"}, [&] {
    require_tensor("x", TensorView(nullptr, DType::f32, {2}), {{DType::f32}, {2}}, {});
  });
  TensorView strided = view;
  strided.strides[0] = 100;
  require_tensor("x", strided, {{DType::f32}, {3, 4}, true}, {});
  expect_error(ErrorCode::invalid_argument, {"dense"}, [&] { require_tensor("x", strided, {{DType::f32}, {3, 4}}, {}); });
  expect_error(ErrorCode::invalid_argument, {"on cuda"}, [&] {
    require_tensor("x", view, {{DType::f32}, {3, 4}}, {DeviceType::cuda, 0});
  });
}

TEST(Arena, GrowsOnlyWhileNothingIsTaken) {
  Arena arena({});
  {
    Arena::Scope scope(arena);
    auto* first = static_cast<char*>(arena.take(1000));
    first[999] = 1;
    expect_error(ErrorCode::internal, {"5120"}, [&] { arena.take(4900); });
  }
  arena.reserve(2 * Arena::rounded(5000));
  Arena::Scope scope(arena);
  char* a = arena.take_as<char>(5000);
  char* b = arena.take_as<char>(5000);
  EXPECT_GE(b - a, 5000);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(b) % Arena::kAlignment, 0u);
}

TEST(Status, KeepsTheFirstFailureAndCountsTheRest) {
  Status status;
  record(status, {});
  EXPECT_TRUE(status.ok());
  record(status, {.code = ErrorCode::nan_logits, .rank = 2, .token = 17});
  record(status, {.code = ErrorCode::nan_logits, .rank = 2, .failures = 3, .token = 40});
  EXPECT_EQ(status.token, 17);
  EXPECT_EQ(status.failures, 4);
  expect_error(ErrorCode::nan_logits, {"rank 2", "token 17", "4 such"}, [&] { throw_if_failed(status); });
}

TEST(Env, RefusesNonsenseByName) {
  setenv("MIXLANE_DEADLINE_MS", "soon", 1);
  expect_error(ErrorCode::invalid_argument, {"MIXLANE_DEADLINE_MS", "soon", "3600000"}, [] { Env::read(); });
  setenv("MIXLANE_DEADLINE_MS", "250", 1);
  EXPECT_EQ(Env::read().deadline.count(), 250);
  unsetenv("MIXLANE_DEADLINE_MS");
  EXPECT_EQ(Env::read().deadline.count(), 30'000);
  setenv("MIXLANE_CHECK", "all", 1);
  expect_error(ErrorCode::invalid_argument, {"MIXLANE_CHECK", "all", "protocol"}, [] { Env::read(); });
  setenv("MIXLANE_CHECK", "protocol", 1);
  EXPECT_TRUE(Env::read().check_protocol);
  unsetenv("MIXLANE_CHECK");
  EXPECT_FALSE(Env::read().check_protocol);
}

struct ToyArgs {
  int size = 0;
};

TEST(Registry, SelectsByIdOrByWhatFits) {
  const std::array<Variant<ToyArgs>, 2> table{{
      {{"toy.small", "small ones"},
       [](const Context&, const ToyArgs& a) { return a.size > 4 ? fmt::format("size {} > 4", a.size) : std::string(); },
       nullptr},
      {{"toy.any", "all"}, nullptr, nullptr},
  }};
  const std::span<const Variant<ToyArgs>> all(table);
  const Context context;
  EXPECT_EQ(select(all, "auto", context, {3}).info.id, "toy.small");
  EXPECT_EQ(select(all, "auto", context, {5}).info.id, "toy.any");
  EXPECT_EQ(select(all, "toy.any", context, {3}).info.id, "toy.any");
  expect_error(ErrorCode::invalid_argument, {"toy.big", "auto, toy.small, toy.any"},
               [&] { select(all, "toy.big", context, {3}); });
  expect_error(ErrorCode::unsupported, {"toy.small: size 5 > 4"}, [&] { select(all, "toy.small", context, {5}); });
}

}  // namespace
}  // namespace mixlane
