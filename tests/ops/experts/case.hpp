// A random experts call with its own memory, and what it must give, computed by plain loops in double.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "core/numeric.hpp"
#include "mixlane/experts.hpp"
#include "ops/quant/formats.hpp"
#include "support/random.hpp"

namespace mixlane::test {

// "wgmma" of a test of "experts.wgmma".
inline std::string name_of_variant(const testing::TestParamInfo<std::string>& test) {
  return test.param.substr(test.param.find('.') + 1);
}

inline constexpr QuantFormat kFormats[] = {QuantFormat::none, QuantFormat::fp8_block, QuantFormat::fp8_channel,
                                           QuantFormat::mxfp4, QuantFormat::mxfp4_fp8};
inline constexpr ActivationKind kKinds[] = {ActivationKind::swiglu, ActivationKind::swiglu_oai, ActivationKind::geglu_tanh,
                                            ActivationKind::relu2};

struct ExpertsShape {
  int hidden = 64, intermediate = 48;
  QuantFormat format = QuantFormat::none;
  ActivationKind kind = ActivationKind::swiglu;
  std::vector<int> counts{3, 0, 1, 40};  // pairs per expert
  int num_topk = 2;
  bool bias = false;
  bool fp8_rows = false;
  bool input_weights = false;
  int padding = 4;           // slots per block, so that pads lie between the groups
  int64_t row_padding = 24;  // values between rows
  float limit = std::numeric_limits<float>::infinity();
};

inline int ceil_of(int value, int by) { return (value + by - 1) / by; }

// One weight matrix per expert: stored bytes, scales, and the exact values in double.
struct TestMatrix {
  std::vector<uint8_t> bytes, e8m0;
  std::vector<float> scales, bias;
  std::vector<double> exact;  // without the fp8 scales: [experts, rows, cols]
  int rows = 0, cols = 0;
};

class ExpertsCase {
 public:
  ExpertsCase(const ExpertsShape& shape_, uint64_t seed) : shape(shape_), rng(seed) {
    const int experts = static_cast<int>(shape.counts.size());
    num_gate_up = (shape.kind == ActivationKind::relu2 ? 1 : 2) * shape.intermediate;
    gate_up = make_matrix(experts, num_gate_up, shape.hidden);
    down = make_matrix(experts, shape.hidden, shape.intermediate);
    make_slots();
    make_rows();
    output.assign(static_cast<size_t>(num_slots) * (shape.hidden + 8), kPoison);
  }

  ExpertsArgs args() {
    const int experts = static_cast<int>(shape.counts.size());
    ExpertsArgs a;
    a.weights.format = shape.format;
    a.weights.num_experts = experts;
    a.weights.hidden = shape.hidden;
    a.weights.intermediate = shape.intermediate;
    set(gate_up, experts, a.weights.gate_up, a.weights.gate_up_scales, a.weights.gate_up_bias);
    set(down, experts, a.weights.down, a.weights.down_scales, a.weights.down_bias);
    a.activation.kind = shape.kind;
    a.activation.limit = shape.limit;
    const int64_t stride = shape.hidden + shape.row_padding;
    if (shape.fp8_rows) {
      a.rows = ConstTensorView(rows_fp8.data(), DType::fp8_e4m3, {num_rows, shape.hidden});
      const int groups = has_groups() ? ceil_of(shape.hidden, 128) : 1;
      if (has_groups())
        a.row_scales = ConstTensorView(row_scales.data(), DType::f32, {num_rows, groups});
      else
        a.row_scales = ConstTensorView(row_scales.data(), DType::f32, {num_rows});
      a.row_scales.strides[0] = groups + 3;
    } else {
      a.rows = ConstTensorView(rows.data(), DType::bf16, {num_rows, shape.hidden});
    }
    a.rows.strides[0] = stride;
    a.num_topk = shape.num_topk;
    a.sorted_pairs = ConstTensorView(sorted_pairs.data(), DType::i32, {num_slots});
    a.expert_counts = ConstTensorView(shape.counts.data(), DType::i32, {experts});
    a.expert_offsets = ConstTensorView(offsets.data(), DType::i32, {experts + 1});
    if (shape.input_weights) {
      a.input_weights = ConstTensorView(input_weights.data(), DType::f32, {num_rows, shape.num_topk});
      a.input_weights.strides[0] = shape.num_topk + 1;
    }
    a.output = TensorView(output.data(), DType::bf16, {num_slots, shape.hidden});
    a.output.strides[0] = shape.hidden + 8;
    return a;
  }

  // Of one expert and one pair per row: slot i is row i.
  void make_dense() {
    const int64_t stride = shape.hidden + shape.row_padding, last = (num_rows - 1) * stride;
    for (int64_t row = 0; row < num_rows - 1; ++row)
      if (rows[row * stride] == kPoison)
        for (int64_t h = 0; h < shape.hidden; ++h) std::swap(rows[row * stride + h], rows[last + h]);
    std::iota(sorted_pairs.begin(), sorted_pairs.end(), -offsets[0]);
  }

  // [slots, H] in double; what is in pads is never read.
  std::vector<double> expected() const {
    std::vector<double> result(static_cast<size_t>(num_slots) * shape.hidden);
    for (size_t e = 0; e < shape.counts.size(); ++e)
      for (int s = offsets[e]; s < offsets[e] + shape.counts[e]; ++s) {
        const std::vector<double> input = input_row(sorted_pairs[s]);
        const std::vector<double> product = multiply(gate_up, e, input);
        std::vector<double> middle(shape.intermediate);
        for (int i = 0; i < shape.intermediate; ++i) {
          const bool gated = shape.kind != ActivationKind::relu2;
          middle[i] = activate(product[i], gated ? product[shape.intermediate + i] : 0.0);
        }
        round_operand(middle);
        const std::vector<double> out = multiply(down, e, middle);
        std::copy(out.begin(), out.end(), result.begin() + static_cast<int64_t>(s) * shape.hidden);
      }
    return result;
  }

  // ||got - want|| / ||want|| over the slots that hold pairs.
  double relative_error(const std::vector<double>& want) const {
    double error = 0, norm = 0;
    for_each_value([&](int64_t at, int64_t out) {
      const double difference = bf16_to_f32(output[out]) - want[at];
      error += difference * difference;
      norm += want[at] * want[at];
    });
    return norm > 0 ? std::sqrt(error / norm) : std::sqrt(error);
  }

  // Every bf16 that belongs to no pair is as it was.
  bool pads_untouched() const {
    std::vector<bool> written(output.size(), false);
    for_each_value([&](int64_t, int64_t out) { written[out] = true; });
    for (size_t i = 0; i < output.size(); ++i)
      if (!written[i] && output[i] != kPoison) return false;
    return true;
  }

  // Activations have a scale per 128 values.
  bool has_groups() const {
    return quantises_activations(shape.format) && activation_group(shape.format) == ScaleGroup::group_1x128;
  }

  // Exact operand values, scales included.
  std::vector<double> input_row(int pair) const {
    const int64_t row = pair / shape.num_topk, stride = shape.hidden + shape.row_padding;
    const float weight = shape.input_weights ? input_weights[row * (shape.num_topk + 1) + pair % shape.num_topk] : 1.0f;
    std::vector<double> values(shape.hidden);
    const bool blocks = has_groups();
    const int groups = blocks ? ceil_of(shape.hidden, 128) : 1;
    for (int h = 0; h < shape.hidden; ++h) {
      if (shape.fp8_rows) {
        values[h] = double{e4m3_to_f32(rows_fp8[row * stride + h])} *
                    row_scales[row * (groups + 3) + (blocks ? h / 128 : 0)] * weight;
      } else {
        values[h] = bf16_to_f32(f32_to_bf16(bf16_to_f32(rows[row * stride + h]) * weight));
      }
    }
    if (!shape.fp8_rows && quantises_activations(shape.format)) round_operand(values);
    return values;
  }

  // To what the second product takes.
  void round_operand(std::vector<double>& values) const {
    if (!quantises_activations(shape.format)) {
      for (double& v : values) v = bf16_to_f32(f64_to_bf16(v));
      return;
    }
    const size_t group = has_groups() ? 128 : values.size();
    for (size_t begin = 0; begin < values.size(); begin += group) {
      const size_t end = std::min(begin + group, values.size());
      float amax = 1e-10f;
      for (size_t i = begin; i < end; ++i) amax = std::max(amax, std::fabs(static_cast<float>(values[i])));
      const float scale = amax / 448.0f;
      for (size_t i = begin; i < end; ++i)
        values[i] = double{e4m3_to_f32(f32_to_e4m3(static_cast<float>(values[i]) / scale))} * scale;
    }
  }

  // A row times an expert's matrix, plus bias.
  std::vector<double> multiply(const TestMatrix& m, size_t expert, const std::vector<double>& input) const {
    std::vector<double> out(m.rows);
    for (int n = 0; n < m.rows; ++n) {
      double sum = 0;
      for (int c = 0; c < m.cols; ++c) {
        double scale = 1;
        if (shape.format == QuantFormat::fp8_channel) scale = m.scales[expert * m.rows + n];
        if (shape.format == QuantFormat::fp8_block)
          scale = m.scales[(expert * ceil_of(m.rows, 128) + n / 128) * ceil_of(m.cols, 128) + c / 128];
        sum += input[c] * m.exact[(expert * m.rows + n) * m.cols + c] * scale;
      }
      out[n] = sum + (shape.bias ? m.bias[expert * m.rows + n] : 0.0f);
    }
    return out;
  }

  static constexpr uint16_t kPoison = 0x7fc1;
  ExpertsShape shape;
  Rng rng;
  int num_gate_up = 0;
  int64_t num_rows = 0, num_slots = 0;
  TestMatrix gate_up, down;
  std::vector<uint16_t> rows, output;
  std::vector<uint8_t> rows_fp8;
  std::vector<float> row_scales, input_weights;
  std::vector<int32_t> sorted_pairs, offsets;

 private:
  template <class Visit>
  void for_each_value(Visit&& visit) const {
    for (size_t e = 0; e < shape.counts.size(); ++e)
      for (int64_t s = offsets[e]; s < offsets[e] + shape.counts[e]; ++s)
        for (int64_t h = 0; h < shape.hidden; ++h) visit(s * shape.hidden + h, s * (shape.hidden + 8) + h);
  }

  TestMatrix make_matrix(int experts, int num_out, int num_in) {
    TestMatrix m;
    m.rows = num_out;
    m.cols = num_in;
    const int64_t count = int64_t{experts} * num_out * num_in;
    const float std = 1.0f / std::sqrt(static_cast<float>(num_in));
    const std::vector<float> values = normal_f32(rng, count, shape.format == QuantFormat::none ? std : 1.0f);
    m.exact.resize(count);
    if (shape.format == QuantFormat::none) {
      m.bytes.resize(count * 2);
      for (int64_t i = 0; i < count; ++i) {
        const uint16_t bits = f32_to_bf16(values[i]);
        std::memcpy(&m.bytes[i * 2], &bits, 2);
        m.exact[i] = bf16_to_f32(bits);
      }
    } else if (has_mx_weights(shape.format)) {
      m.bytes.assign(count / 2, 0);
      const int groups = ceil_of(num_in, 32);
      std::uniform_int_distribution<int> exponent(121 - static_cast<int>(std::log2(num_in) / 2), 126);
      m.e8m0.resize(static_cast<size_t>(experts) * num_out * groups);
      for (uint8_t& s : m.e8m0) s = static_cast<uint8_t>(exponent(rng));
      for (int64_t i = 0; i < count; ++i) {
        const uint8_t code = f32_to_e2m1(values[i] * 2.0f);
        m.bytes[i / 2] |= static_cast<uint8_t>(code << (i % 2 * 4));
        m.exact[i] = e2m1_to_f32(code) * std::ldexp(1.0, m.e8m0[i / num_in * groups + i % num_in / 32] - 127);
      }
    } else {
      m.bytes.resize(count);
      for (int64_t i = 0; i < count; ++i) {
        m.bytes[i] = f32_to_e4m3(values[i] * 100.0f);
        m.exact[i] = e4m3_to_f32(m.bytes[i]);
      }
      const int64_t scales = shape.format == QuantFormat::fp8_channel
                                 ? int64_t{experts} * num_out
                                 : int64_t{experts} * ceil_of(num_out, 128) * ceil_of(num_in, 128);
      std::uniform_real_distribution<float> factor(0.5f, 2.0f);
      for (int64_t i = 0; i < scales; ++i) m.scales.push_back(factor(rng) * std / 100.0f);
    }
    if (shape.bias) m.bias = normal_f32(rng, int64_t{experts} * num_out, 0.3f);
    return m;
  }

  void set(const TestMatrix& m, int experts, ConstTensorView& values, ConstTensorView& scales, ConstTensorView& bias) {
    switch (shape.format) {
      case QuantFormat::none: values = {m.bytes.data(), DType::bf16, {experts, m.rows, m.cols}}; break;
      case QuantFormat::mxfp4:
      case QuantFormat::mxfp4_fp8:
        values = {m.bytes.data(), DType::fp4_e2m1, {experts, m.rows, m.cols}};
        scales = {m.e8m0.data(), DType::e8m0, {experts, m.rows, ceil_of(m.cols, 32)}};
        break;
      case QuantFormat::fp8_block:
        values = {m.bytes.data(), DType::fp8_e4m3, {experts, m.rows, m.cols}};
        scales = {m.scales.data(), DType::f32, {experts, ceil_of(m.rows, 128), ceil_of(m.cols, 128)}};
        break;
      case QuantFormat::fp8_channel:
        values = {m.bytes.data(), DType::fp8_e4m3, {experts, m.rows, m.cols}};
        scales = {m.scales.data(), DType::f32, {experts, m.rows}};
        break;
    }
    if (shape.bias) bias = {m.bias.data(), DType::f32, {experts, m.rows}};
  }

  void make_slots() {
    const int num_pairs = std::accumulate(shape.counts.begin(), shape.counts.end(), 0);
    num_rows = ceil_of(num_pairs, shape.num_topk) + 1;
    std::vector<int32_t> pairs(num_rows * shape.num_topk);
    std::iota(pairs.begin(), pairs.end(), 0);
    std::shuffle(pairs.begin(), pairs.end(), rng);
    auto next = pairs.begin();
    offsets.push_back(shape.padding);  // as behind an invalid bucket
    sorted_pairs.assign(shape.padding, 1 << 30);
    for (const int count : shape.counts) {
      std::sort(next, next + count);
      sorted_pairs.insert(sorted_pairs.end(), next, next + count);
      next += count;
      sorted_pairs.resize(ceil_of(static_cast<int>(sorted_pairs.size()), shape.padding) * shape.padding, 1 << 30);
      offsets.push_back(static_cast<int32_t>(sorted_pairs.size()));
    }
    num_slots = static_cast<int64_t>(sorted_pairs.size());
  }

  void make_rows() {
    const int64_t stride = shape.hidden + shape.row_padding;
    rows = normal_bf16(rng, num_rows * stride);
    const int groups = has_groups() ? ceil_of(shape.hidden, 128) : 1;
    std::uniform_real_distribution<float> factor(0.005f, 0.02f);
    for (const uint16_t bits : rows) rows_fp8.push_back(f32_to_e4m3(100.0f * bf16_to_f32(bits)));
    for (int64_t i = 0; i < num_rows * (groups + 3); ++i) row_scales.push_back(factor(rng));
    for (int64_t i = 0; i < num_rows * (shape.num_topk + 1); ++i) input_weights.push_back(factor(rng) * 60.0f);
    poison_unused(stride, groups);
  }

  // NaNs between the rows and in rows that no pair takes.
  void poison_unused(int64_t stride, int groups) {
    std::vector<bool> used(static_cast<size_t>(num_rows), false);
    for (size_t e = 0; e < shape.counts.size(); ++e)
      for (int s = offsets[e]; s < offsets[e] + shape.counts[e]; ++s) used[sorted_pairs[s] / shape.num_topk] = true;
    for (int64_t row = 0; row < num_rows; ++row) {
      for (int64_t h = used[row] ? shape.hidden : 0; h < stride; ++h) {
        rows[row * stride + h] = kPoison;
        rows_fp8[row * stride + h] = 0x7f;
      }
      for (int g = used[row] ? groups : 0; g < groups + 3; ++g) row_scales[row * (groups + 3) + g] = NAN;
      input_weights[row * (shape.num_topk + 1) + shape.num_topk] = NAN;
    }
  }

  double activate(double gate, double up) const {
    const double limit = shape.limit;
    switch (shape.kind) {
      case ActivationKind::swiglu: {
        const double g = std::min(gate, limit);
        return g / (1 + std::exp(-g)) * std::max(-limit, std::min(up, limit));
      }
      case ActivationKind::swiglu_oai: {
        const double g = std::min(gate, limit);
        return g / (1 + std::exp(-double{1.702f} * g)) * (std::max(-limit, std::min(up, limit)) + 1);
      }
      case ActivationKind::geglu_tanh:
        return 0.5 * gate * (1 + std::tanh(std::sqrt(2 / M_PI) * (gate + 0.044715 * gate * gate * gate))) * up;
      case ActivationKind::relu2: return gate > 0 ? gate * gate : 0;
    }
    return NAN;
  }
};

}  // namespace mixlane::test
