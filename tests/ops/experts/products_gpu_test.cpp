// Each product by itself, before anything is rounded, against the sum in double of the same quantised operands.
//
// A bias of minus the expected sum leaves the error of a product as the result. The other product only passes values on:
// its weights pick one value each, and a gate of 64 is 64 for silu as well.

#include "core/format.hpp"
#include "gpu_case.hpp"

namespace mixlane::test {
namespace {

constexpr double kTolerance = 1e-3;
constexpr float kGate = 64.0f;

// One row per expert, as often as the expert has pairs: the bias is the expert's.
class ProductCase : public ExpertsCase {
 public:
  explicit ProductCase(const ExpertsShape& of, uint64_t seed) : ExpertsCase(of, seed) {
    const int64_t stride = shape.hidden + shape.row_padding, groups = row_scale_groups();
    for (size_t e = 0; e < shape.counts.size(); ++e)
      for (int s = offsets[e] + 1; s < offsets[e] + shape.counts[e]; ++s) {
        const int64_t from = sorted_pairs[offsets[e]], to = sorted_pairs[s];
        std::copy_n(&rows[from * stride], shape.hidden, &rows[to * stride]);
        std::copy_n(&rows_fp8[from * stride], shape.hidden, &rows_fp8[to * stride]);
        std::copy_n(&row_scales[from * groups], groups, &row_scales[to * groups]);
      }
  }

  std::vector<double> row_of(size_t expert) const { return input_row(sorted_pairs[offsets[expert]]); }
  float* bias_of(TestMatrix& m, size_t expert) const { return &m.bias[expert * static_cast<size_t>(m.rows)]; }

  // Matrix row n of an expert becomes zero but for column `one`, which becomes 1; -1: none.
  void pick(TestMatrix& m, size_t expert, int n, int one) {
    const size_t begin = (expert * m.rows + n) * static_cast<size_t>(m.cols), bits = m.bytes.size() * 8 / m.exact.size();
    std::fill_n(m.bytes.begin() + begin * bits / 8, m.cols * bits / 8, uint8_t{0});
    std::fill_n(m.exact.begin() + begin, m.cols, 0.0);
    if (one < 0) return;
    const size_t at = begin + one;
    if (bits == 16) {
      const uint16_t value = f32_to_bf16(1.0f);
      std::memcpy(&m.bytes[at * 2], &value, 2);
    } else if (bits == 8) {
      m.bytes[at] = f32_to_e4m3(1.0f);
    } else {
      m.bytes[at / 2] = static_cast<uint8_t>(f32_to_e2m1(1.0f) << (at % 2 * 4));
    }
    m.exact[at] = 1.0;
  }
  // No scales but 1.
  void unscale(TestMatrix& m) {
    std::fill(m.scales.begin(), m.scales.end(), 1.0f);
    std::fill(m.e8m0.begin(), m.e8m0.end(), uint8_t{127});
  }

  // ||got|| / ||want|| over an expert's rows, all of which are to be `want`.
  double error_of(size_t expert, const std::vector<double>& want, size_t num_values, double factor) const {
    double error = 0, norm = 0;
    for (int s = offsets[expert]; s < offsets[expert] + shape.counts[expert]; ++s)
      for (size_t i = 0; i < num_values; ++i) {
        const double value = bf16_to_f32(output[s * (shape.hidden + 8) + i]) / factor;
        error += value * value;
        norm += want[i] * want[i];
      }
    return std::sqrt(error / norm);
  }

 private:
  int64_t row_scale_groups() const { return (has_groups() ? ceil_of(shape.hidden, 128) : 1) + 3; }
};

class ExpertsProductsGpu : public ExpertsOnGpu {
 protected:
  static ExpertsShape shape_of(QuantFormat format, int hidden, int intermediate) {
    ExpertsShape shape;
    shape.format = format;
    shape.hidden = hidden;
    shape.intermediate = intermediate;
    shape.row_padding = 16;
    shape.fp8_rows = quantises_activations(format);
    shape.bias = true;
    shape.num_topk = 1;
    shape.counts = {1, 20, 70, 140};  // sums by ranges, narrow and wide tiles
    return shape;
  }
  bool runs(ProductCase& test) {
    DeviceCall call(test.args());
    call.args.variant = GetParam();
    if (!takes(call.args)) return false;
    run(call);
    return true;
  }
  // Figures go into the report of --gtest_output.
  void expect_small(const char* product, double error, const ProductCase& test, size_t expert) {
    RecordProperty(fmt::format("{}_{}_{}_rows", product, name(test.shape.format), test.shape.counts[expert]),
                   fmt::format("{:.1e}", error));
    EXPECT_LE(error, kTolerance) << "format " << static_cast<int>(test.shape.format) << ", expert " << expert;
  }
};
INSTANTIATE_TEST_SUITE_P(Variants, ExpertsProductsGpu, testing::ValuesIn(gpu_variants()), name_of_variant);

// down passes the activated error on.
TEST_P(ExpertsProductsGpu, GateUp) {
  for (const QuantFormat format : kFormats) {
    ProductCase test(shape_of(format, 7168, 128), 10);
    const int intermediate = test.shape.intermediate;
    test.unscale(test.down);
    std::vector<std::vector<double>> want;
    for (size_t e = 0; e < test.shape.counts.size(); ++e) {
      for (int i = 0; i < intermediate; ++i) test.pick(test.gate_up, e, i, -1);
      for (int h = 0; h < test.shape.hidden; ++h) test.pick(test.down, e, h, h < intermediate ? h : -1);
      float* bias = test.bias_of(test.gate_up, e);
      std::fill_n(bias, 2 * intermediate, 0.0f);
      std::vector<double> sums = test.multiply(test.gate_up, e, test.row_of(e));
      want.emplace_back(sums.begin() + intermediate, sums.end());
      for (int i = 0; i < intermediate; ++i) {
        bias[i] = kGate;
        bias[intermediate + i] = -static_cast<float>(want[e][i]);
      }
      std::fill_n(test.bias_of(test.down, e), test.shape.hidden, 0.0f);
    }
    if (!runs(test)) continue;
    for (size_t e = 0; e < want.size(); ++e)
      expect_small("gate_up", test.error_of(e, want[e], static_cast<size_t>(intermediate), kGate), test, e);
  }
}

// gate_up passes the input on, which is quantised as the oracle does it.
TEST_P(ExpertsProductsGpu, Down) {
  for (const QuantFormat format : kFormats) {
    ProductCase test(shape_of(format, 256, 2048), 20);
    const int intermediate = test.shape.intermediate, hidden = test.shape.hidden;
    test.unscale(test.gate_up);
    std::vector<std::vector<double>> want;
    for (size_t e = 0; e < test.shape.counts.size(); ++e) {
      for (int i = 0; i < intermediate; ++i) {
        test.pick(test.gate_up, e, i, -1);
        test.pick(test.gate_up, e, intermediate + i, (i * 7 + i / hidden) % hidden);
      }
      float* bias = test.bias_of(test.gate_up, e);
      std::fill_n(bias, intermediate, kGate);
      std::fill_n(bias + intermediate, intermediate, 0.0f);
      std::vector<double> activated = test.multiply(test.gate_up, e, test.row_of(e));
      activated.erase(activated.begin(), activated.begin() + intermediate);
      for (double& value : activated) value = static_cast<float>(value) * kGate;
      test.round_operand(activated);
      std::fill_n(test.bias_of(test.down, e), hidden, 0.0f);
      want.push_back(test.multiply(test.down, e, activated));
      for (int h = 0; h < hidden; ++h) test.bias_of(test.down, e)[h] = -static_cast<float>(want[e][h]);
    }
    if (!runs(test)) continue;
    for (size_t e = 0; e < want.size(); ++e)
      expect_small("down", test.error_of(e, want[e], static_cast<size_t>(hidden), 1.0), test, e);

    // The result itself, against the sum rounded to the output's bf16 too. Values on the other side of a tie are off by a
    // step: few of them, and which depends on the data, so that the norm scatters.
    std::fill(test.down.bias.begin(), test.down.bias.end(), 0.0f);
    runs(test);
    for (size_t e = 0; e < want.size(); ++e) {
      for (int s = test.offsets[e]; s < test.offsets[e] + test.shape.counts[e]; ++s)
        for (int h = 0; h < hidden; ++h) {
          uint16_t& bits = test.output[s * (hidden + 8) + h];
          bits = f32_to_bf16(bf16_to_f32(bits) - bf16_to_f32(f64_to_bf16(want[e][h])));
        }
      EXPECT_LE(test.error_of(e, want[e], static_cast<size_t>(hidden), 1.0), 2 * kTolerance);
    }
  }
}

}  // namespace
}  // namespace mixlane::test
