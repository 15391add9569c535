// experts.reference: one loop per line of the contract's arithmetic. The oracle of every other variant.
#include <algorithm>
#include <vector>

#include "core/numeric.hpp"
#include "core/parallel.hpp"
#include "core/simd.hpp"
#include "ops/experts/activation.hpp"
#include "ops/experts/op.hpp"
#include "ops/experts/operands.hpp"
#include "ops/experts/sum_pairs.hpp"

namespace mixlane {
namespace {

constexpr int64_t kTileRows = 64;  // rows that share one decoding of a weight row

// Rows of one operand, values widened to f32.
struct Operand {
  Operand(QuantFormat format_, int64_t rows, int64_t cols_)
      : format(format_),
        cols(cols_),
        groups(num_groups(format_, cols_)),
        values(static_cast<size_t>(rows * cols_)),
        scales(static_cast<size_t>(rows * groups)) {}

  void set_row(int64_t row, const uint16_t* bits, const float* row_scales) {
    for (int64_t c = 0; c < cols; ++c) values[row * cols + c] = bf16_to_f32(bits[c]);
    std::copy_n(row_scales, groups, scales.begin() + row * groups);
  }

  QuantFormat format;
  int64_t cols, groups;
  std::vector<float> values, scales;
};

// Sixteen partial sums: the order is fixed, and the loop maps to vector registers of any width.
MIXLANE_CPU_LEVELS float dot(const float* a, const float* b, int64_t count) {
  float lanes[16] = {};
  for (int64_t i = 0; i + 16 <= count; i += 16)
    for (int64_t l = 0; l < 16; ++l) lanes[l] += a[i + l] * b[i + l];
  for (int64_t i = count / 16 * 16; i < count; ++i) lanes[i % 16] += a[i] * b[i];
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  return sum;
}

// out[m, n] = product of the first `rows` rows of `a` with every row of the matrix, + bias; out is [rows, matrix.rows].
void multiply(int num_threads, const MatrixView& matrix, const Operand& a, int64_t rows, float* out) {
  parallel_ranges(num_threads, matrix.rows, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint16_t> bits(static_cast<size_t>(matrix.cols));
    Operand weight(matrix.format, 1, matrix.cols);
    const int64_t group = group_size(matrix.format, matrix.cols);
    for (int64_t n = begin; n < end; ++n) {
      decode_row(matrix, n, bits.data());
      for (int64_t g = 0; g < weight.groups; ++g) weight.scales[g] = weight_scale(matrix, n, g);
      weight.set_row(0, bits.data(), std::vector<float>(weight.scales).data());
      for (int64_t m = 0; m < rows; ++m) {
        float sum = 0;
        for (int64_t g = 0; g < weight.groups; ++g) {
          const int64_t first = g * group;
          sum += dot(&a.values[m * a.cols + first], &weight.values[first], std::min(group, a.cols - first)) *
                 (a.scales[m * a.groups + g] * weight.scales[g]);
        }
        out[m * matrix.rows + n] = sum + (matrix.bias ? matrix.bias[n] : 0.0f);
      }
    }
  });
}

// Slots [begin, end) of one expert.
void run_tile(const Context& context, const ExpertsArgs& args, const SlotMap& slots, int64_t expert, int64_t begin,
              int64_t end) {
  const ExpertWeights& weights = args.weights;
  const int64_t rows = end - begin;
  const int64_t longest = std::max(weights.hidden, weights.intermediate);
  std::vector<uint16_t> bits(static_cast<size_t>(longest));
  std::vector<float> scales(static_cast<size_t>(num_groups(weights.format, longest))), scratch(static_cast<size_t>(longest));

  Operand input(weights.format, rows, weights.hidden);
  for (int64_t m = 0; m < rows; ++m) {
    load_input_row(args, slots.pair(begin + m), bits.data(), scales.data(), scratch.data());
    input.set_row(m, bits.data(), scales.data());
  }
  const MatrixView gate_up = gate_up_of(weights, expert);
  std::vector<float> product(static_cast<size_t>(rows * gate_up.rows));
  multiply(context.num_threads(), gate_up, input, rows, product.data());

  Operand activated(weights.format, rows, weights.intermediate);
  for (int64_t m = 0; m < rows; ++m) {
    const float* gate = &product[m * gate_up.rows];
    const float* up = args.activation.gated() ? gate + weights.intermediate : nullptr;
    apply_activation(args.activation, gate, up, scratch.data(), weights.intermediate);
    store_operand(weights.format, scratch.data(), weights.intermediate, bits.data(), scales.data());
    activated.set_row(m, bits.data(), scales.data());
  }
  product.resize(static_cast<size_t>(rows * weights.hidden));
  multiply(context.num_threads(), down_of(weights, expert), activated, rows, product.data());

  for (int64_t m = 0; m < rows; ++m) {
    uint16_t* out = args.output.as<uint16_t>() + (begin + m) * args.output.strides[0];
    for (int64_t h = 0; h < weights.hidden; ++h) out[h] = f32_to_bf16(product[m * weights.hidden + h]);
  }
}

// A row per pair.
void run_pairs(const Context& context, const ExpertsArgs& args) {
  const SlotMap slots(args);
  for (int64_t e = 0; e < args.weights.num_experts; ++e) {
    const int64_t first = slots.begin(e), last = first + slots.count(e);
    for (int64_t begin = first; begin < last; begin += kTileRows)
      run_tile(context, args, slots, e, begin, std::min(begin + kTileRows, last));
  }
}

}  // namespace

void launch_experts_reference(Context& context, const ExpertsArgs& args, Stream) {
  if (!args.pair_slots.given()) return run_pairs(context, args);
  const int64_t slots = num_slots(args), hidden = args.weights.hidden;
  std::vector<uint16_t> rows(static_cast<size_t>(slots * hidden));
  ExpertsArgs pairs = args;
  pairs.output = {rows.data(), DType::bf16, {slots, hidden}};
  run_pairs(context, pairs);
  sum_pairs(context, args, pairs.output);
}

}  // namespace mixlane
