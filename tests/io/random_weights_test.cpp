// Random weights: the distribution, and that nothing but seed, expert and position decides a value.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>

#include "io/random_source.hpp"
#include "mixlane/quant.hpp"
#include "mixlane/weights.hpp"
#include "support/errors.hpp"

namespace mixlane::test {
namespace {

Model small_model() {
  Model model;
  model.name = "small";
  model.hidden = 336;
  model.intermediate = 208;
  model.routing.num_experts = 6;
  model.routing.num_zero_experts = 2;
  model.routing.num_topk = 2;
  return model;
}

LayerWeights make(const Model& model, QuantFormat format, const std::vector<int>& experts, int num_threads, uint64_t seed) {
  Context context({{}, num_threads});
  WeightsRequest request;
  request.model = model;
  request.format = format;
  request.experts = experts;
  return random_weights(context, request, seed);
}

std::vector<uint8_t> bytes_of(const ConstTensorView& view) {
  if (!view.given()) return {};
  const auto* data = view.as<uint8_t>();
  return {data, data + size_bytes(view.dtype, view.num_values())};
}

// Part `expert` of [experts, ...].
std::vector<uint8_t> bytes_of_expert(const ConstTensorView& view, int64_t expert) {
  const std::vector<uint8_t> all = bytes_of(view);
  const auto size = static_cast<int64_t>(all.size()) / std::max<int64_t>(view.given() ? view.shape[0] : 1, 1);
  return {all.begin() + expert * size, all.begin() + (expert + 1) * size};
}

constexpr ConstTensorView ExpertWeights::*kTensors[] = {&ExpertWeights::gate_up,      &ExpertWeights::gate_up_scales,
                                                        &ExpertWeights::gate_up_bias, &ExpertWeights::down,
                                                        &ExpertWeights::down_scales,  &ExpertWeights::down_bias};
constexpr QuantFormat kFormats[] = {QuantFormat::none, QuantFormat::fp8_block, QuantFormat::fp8_channel, QuantFormat::mxfp4,
                                    QuantFormat::mxfp4_fp8};

TEST(RandomWeights, SameForAnyRankSplitAndThreads) {
  Model model = small_model();
  model.expert_bias = true;
  for (const QuantFormat format : kFormats) {
    const LayerWeights all = make(model, format, {0, 1, 2, 3, 4, 5}, 1, 7);
    const LayerWeights part = make(model, format, {4, 1}, 3, 7);
    for (const auto tensor : kTensors) {
      EXPECT_EQ(bytes_of_expert(all.weights.experts.*tensor, 4), bytes_of_expert(part.weights.experts.*tensor, 0));
      EXPECT_EQ(bytes_of_expert(all.weights.experts.*tensor, 1), bytes_of_expert(part.weights.experts.*tensor, 1));
    }
  }
}

TEST(RandomWeights, SeedExpertMatrixAndPositionMatter) {
  const LayerWeights a = make(small_model(), QuantFormat::none, {0, 1}, 2, 7);
  const LayerWeights b = make(small_model(), QuantFormat::none, {0, 1}, 2, 8);
  const ExpertWeights& w = a.weights.experts;
  EXPECT_NE(bytes_of(w.gate_up), bytes_of(b.weights.experts.gate_up));
  EXPECT_NE(bytes_of_expert(w.gate_up, 0), bytes_of_expert(w.gate_up, 1));
  EXPECT_NE(std::memcmp(w.gate_up.data, w.down.data, 400), 0);
  const std::vector<uint8_t> first = bytes_of_expert(w.gate_up, 0);
  EXPECT_NE(std::memcmp(first.data(), first.data() + 336 * 2, 336 * 2), 0) << "two rows are equal";
}

TEST(RandomWeights, NormalWithVarianceOneOverFanIn) {
  const LayerWeights made = make(small_model(), QuantFormat::none, {0, 1, 2, 3, 4, 5}, 2, 1);
  for (const ConstTensorView& view : {made.weights.experts.gate_up, made.weights.experts.down}) {
    const int64_t count = view.num_values();
    double sum = 0, square = 0, fourth = 0, neighbours = 0;
    for (int64_t i = 0; i < count; ++i) {
      const double x = bf16_to_f32(view.as<uint16_t>()[i]) * std::sqrt(static_cast<double>(view.shape[2]));
      sum += x;
      square += x * x;
      fourth += x * x * x * x;
      if (i > 0) neighbours += x * bf16_to_f32(view.as<uint16_t>()[i - 1]) * std::sqrt(static_cast<double>(view.shape[2]));
    }
    const double tolerance = 5 / std::sqrt(static_cast<double>(count));
    EXPECT_NEAR(sum / count, 0, tolerance);
    EXPECT_NEAR(square / count, 1, 2 * tolerance);
    EXPECT_NEAR(fourth / count, 3, 12 * tolerance);
    EXPECT_NEAR(neighbours / count, 0, tolerance);
  }
}

TEST(RandomWeights, QuantilesInvertTheNormalDistribution) {
  const NormalTable table;
  for (const int i : {0, 1, 100, 20000, 32767, 32768, 50000, 65535})
    EXPECT_NEAR(0.5 * std::erfc(-table[static_cast<uint16_t>(i)] * std::sqrt(0.5)), (i + 0.5) / 65536, 1e-8) << i;
}

// The quantised formats hold the bf16 weights, quantised by the public op as one matrix.
TEST(RandomWeights, QuantisedFormsOfTheSameValues) {
  const std::map<QuantFormat, ScaleGroup> groups{{QuantFormat::fp8_block, ScaleGroup::block_128x128},
                                                 {QuantFormat::fp8_channel, ScaleGroup::row},
                                                 {QuantFormat::mxfp4, ScaleGroup::group_1x32},
                                                 {QuantFormat::mxfp4_fp8, ScaleGroup::group_1x32}};
  Model model = small_model();
  model.intermediate = 1040;  // more rows than are quantised at a time
  const LayerWeights plain = make(model, QuantFormat::none, {3}, 1, 5);
  for (const auto& [format, group] : groups) {
    const LayerWeights made = make(model, format, {3}, 2, 5);
    const ExpertWeights &from = plain.weights.experts, &to = made.weights.experts;
    Context context({{}, 1});
    for (const auto& [values, got, got_scales] :
         {std::tuple{from.gate_up, to.gate_up, to.gate_up_scales}, std::tuple{from.down, to.down, to.down_scales}}) {
      std::vector<uint8_t> want(bytes_of(got).size()), want_scales(bytes_of(got_scales).size());
      QuantArgs args;
      args.input = ConstTensorView(values.data, DType::bf16, {values.shape[1], values.shape[2]});
      args.group = group;
      args.output = TensorView(want.data(), got.dtype, {got.shape[1], got.shape[2]});
      args.scales = group == ScaleGroup::row
                        ? TensorView(want_scales.data(), got_scales.dtype, {got_scales.shape[1]})
                        : TensorView(want_scales.data(), got_scales.dtype, {got_scales.shape[1], got_scales.shape[2]});
      quantize(context, args);
      EXPECT_EQ(want, bytes_of(got));
      EXPECT_EQ(want_scales, bytes_of(got_scales));
    }
  }
}

TEST(RandomWeights, WhatTheModelHas) {
  Model model = small_model();
  const LayerWeights bare = make(model, QuantFormat::none, {0}, 1, 1);
  EXPECT_EQ(bare.weights.shared.num_experts, 0);
  EXPECT_FALSE(bare.weights.shared_gate.given());
  EXPECT_FALSE(bare.weights.correction_bias.given());
  EXPECT_FALSE(bare.weights.experts.gate_up_bias.given());
  EXPECT_EQ(bare.owned_bytes, 2 * (416 * 336 + 336 * 208));

  model.num_shared_experts = 2;
  model.shared_intermediate = 96;
  model.shared_gate = model.correction_bias = true;
  model.activation.kind = ActivationKind::relu2;
  const LayerWeights full = make(model, QuantFormat::none, {}, 1, 1);
  EXPECT_EQ(full.weights.experts.num_experts, 0);
  EXPECT_EQ(full.weights.shared.num_experts, 1);
  EXPECT_EQ(to_string(full.weights.shared.gate_up), "bf16[1, 96, 336] on cpu");
  EXPECT_EQ(to_string(full.weights.shared.down), "bf16[1, 336, 96] on cpu");
  EXPECT_EQ(to_string(full.weights.shared_gate), "bf16[336] on cpu");
  EXPECT_EQ(to_string(full.weights.correction_bias), "f32[8] on cpu");
}

TEST(RandomWeights, Refusals) {
  Model model = small_model();
  expect_error(ErrorCode::invalid_argument, {"expert 6 of model small", "0..5"},
               [&] { make(model, QuantFormat::none, {6}, 1, 1); });
  model.hidden = model.intermediate = 1 << 20;
  expect_error(ErrorCode::out_of_memory, {"2 experts of small need 13194139533312 bytes", "are free", "more ranks"}, [&] {
    make(model, QuantFormat::none, {0, 1}, 1, 1);
  });
}

}  // namespace
}  // namespace mixlane::test
