// quantize and dequantize, bit by bit, against plain loops in double with a search for the nearest code.
#include "mixlane/quant.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "ops/quant/op.hpp"
#include "support/errors.hpp"
#include "support/random.hpp"

namespace mixlane {
namespace {

using test::expect_error;
using test::Rng;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kMax = std::numeric_limits<float>::max();
constexpr float kTiny = std::numeric_limits<float>::denorm_min();
constexpr uint8_t kUntouched = 0xa5;

double e4m3_value(int code) {  // of a finite code
  static const std::vector<double> values = [] {
    std::vector<double> all;
    for (int c = 0; c < 256; ++c) {
      const int exponent = (c >> 3) & 15, mantissa = c & 7;
      const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
      all.push_back(c & 128 ? -magnitude : magnitude);
    }
    return all;
  }();
  return values[code];
}
double e2m1_value(int code) {
  static constexpr double magnitudes[] = {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0};
  return code & 8 ? -magnitudes[code & 7] : magnitudes[code & 7];
}

// The nearest of codes 0..max_code, the even one of two; beyond the last one: the last one. Sign in `sign_bit`.
template <class Value>
uint8_t nearest(double x, int max_code, int sign_bit, Value value) {
  int best = 0;
  for (int code = 1; code <= max_code; ++code) {
    const double d = std::fabs(value(code) - std::fabs(x)), b = std::fabs(value(best) - std::fabs(x));
    if (d < b || (d == b && code % 2 == 0)) best = code;
  }
  if (std::isinf(x)) best = max_code;
  return static_cast<uint8_t>(best | (std::signbit(x) ? sign_bit : 0));
}

struct Size {
  int64_t rows, cols;
};
Size tile_size(ScaleGroup group, int64_t cols) {
  switch (group) {
    case ScaleGroup::group_1x128: return {1, 128};
    case ScaleGroup::row: return {1, std::max<int64_t>(cols, 1)};
    case ScaleGroup::block_128x128: return {128, 128};
    case ScaleGroup::group_1x32: return {1, 32};
  }
  return {};
}
bool is_fp4(ScaleGroup group) { return group == ScaleGroup::group_1x32; }

// The quantised matrix as one code per value, and its scales as f32 (fp8) or bytes (mxfp4), tile by tile.
struct Quantised {
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  std::vector<uint8_t> scale_bytes;
};

Quantised oracle(const std::vector<float>& x, int64_t rows, int64_t cols, ScaleGroup group) {
  Quantised q;
  q.codes.resize(rows * cols);
  const Size tile = tile_size(group, cols);
  for (int64_t r0 = 0; r0 < rows; r0 += tile.rows)
    for (int64_t c0 = 0; c0 < cols; c0 += tile.cols) {
      const int64_t r1 = std::min(rows, r0 + tile.rows), c1 = std::min(cols, c0 + tile.cols);
      double amax = 0;
      bool has_nan = false;
      for (int64_t r = r0; r < r1; ++r)
        for (int64_t c = c0; c < c1; ++c) {
          const double value = x[r * cols + c];
          if (std::isnan(value))
            has_nan = true;
          else
            amax = std::max(amax, std::min<double>(std::fabs(value), kMax));
        }
      double scale;
      if (is_fp4(group)) {
        const int exponent = amax == 0 ? -127 : std::max(std::ilogb(amax) - 2, -127);
        q.scale_bytes.push_back(has_nan ? 255 : static_cast<uint8_t>(exponent + 127));
        scale = std::ldexp(1.0, exponent);
      } else {
        const float f32 = static_cast<float>(std::max<double>(amax, 1e-10f) / 448.0);
        q.scales.push_back(f32);
        scale = f32;
      }
      for (int64_t r = r0; r < r1; ++r)
        for (int64_t c = c0; c < c1; ++c) {
          const float value = x[r * cols + c];
          uint8_t& code = q.codes[r * cols + c];
          if (is_fp4(group))
            code = has_nan ? 0 : nearest(static_cast<float>(value / scale), 7, 8, e2m1_value);
          else if (std::isnan(value))
            code = std::signbit(value) ? 0xff : 0x7f;
          else
            code = nearest(static_cast<float>(value / scale), 126, 128, e4m3_value);
        }
    }
  return q;
}

// The strides of a test's tensors beyond what is dense.
struct Layout {
  int64_t input_padding = 0;
  int64_t output_padding = 0;      // even
  bool transposed_scales = false;  // column major, as some GEMMs want them
};

struct Buffers {
  std::vector<uint8_t> input, output, scales;
  QuantArgs args;
};

void put(std::vector<uint8_t>& memory, int64_t at, DType dtype, float value) {
  const uint16_t bits16 = dtype == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
  if (dtype == DType::f32)
    std::memcpy(&memory[at * 4], &value, 4);
  else
    std::memcpy(&memory[at * 2], &bits16, 2);
}
float get(const std::vector<uint8_t>& memory, int64_t at, DType dtype) {
  float value;
  uint16_t bits16;
  if (dtype == DType::f32) {
    std::memcpy(&value, &memory[at * 4], 4);
    return value;
  }
  std::memcpy(&bits16, &memory[at * 2], 2);
  return dtype == DType::f16 ? f16_to_f32(bits16) : bf16_to_f32(bits16);
}

TensorView scales_view(std::vector<uint8_t>& memory, int64_t rows, int64_t cols, ScaleGroup group, bool transposed) {
  const Size tile = tile_size(group, cols);
  const int64_t tile_rows = (rows + tile.rows - 1) / tile.rows, tile_cols = (cols + tile.cols - 1) / tile.cols;
  memory.assign((tile_rows * tile_cols + 4) * 8, kUntouched);
  if (group == ScaleGroup::row) {
    TensorView view(memory.data(), DType::f32, {rows});
    if (transposed) view.strides[0] = 2;
    return view;
  }
  TensorView view(memory.data(), is_fp4(group) ? DType::e8m0 : DType::f32, {tile_rows, tile_cols});
  if (transposed) view.strides = {1, tile_rows + 1};
  return view;
}

Buffers make(const std::vector<float>& x, int64_t rows, int64_t cols, DType dtype, ScaleGroup group, Layout layout = {}) {
  Buffers b;
  const int64_t input_stride = cols + layout.input_padding, output_stride = cols + layout.output_padding;
  b.input.assign((rows * input_stride + 1) * 4, 0xff);  // NaN between the rows
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) put(b.input, r * input_stride + c, dtype, x[r * cols + c]);
  b.output.assign(rows * output_stride + 1, kUntouched);
  b.args.input = ConstTensorView(b.input.data(), dtype, {rows, cols});
  b.args.input.strides[0] = input_stride;
  b.args.group = group;
  b.args.output = TensorView(b.output.data(), is_fp4(group) ? DType::fp4_e2m1 : DType::fp8_e4m3, {rows, cols});
  b.args.output.strides[0] = output_stride;
  b.args.scales = scales_view(b.scales, rows, cols, group, layout.transposed_scales);
  return b;
}

int code_at(const Buffers& b, int64_t row, int64_t col) {
  const int64_t at = row * b.args.output.strides[0] + col;
  if (!is_fp4(b.args.group)) return b.output[at];
  return at % 2 == 0 ? b.output[at / 2] & 15 : b.output[at / 2] >> 4;
}
int64_t scale_offset(const Buffers& b, int64_t tile_row, int64_t tile_col) {
  const TensorView& s = b.args.scales;
  return tile_row * s.strides[0] + (s.ndim == 2 ? tile_col * s.strides[1] : 0);
}

// Quantises x (already representable in dtype), compares every bit, dequantises to every dtype and compares again.
void check(const std::vector<float>& x, int64_t rows, int64_t cols, DType dtype, ScaleGroup group, Layout layout = {},
           int num_threads = 1) {
  SCOPED_TRACE(testing::Message() << rows << " x " << cols << " " << name(dtype) << " group " << static_cast<int>(group));
  Context context({.num_threads = num_threads});
  Buffers b = make(x, rows, cols, dtype, group, layout);
  quantize(context, b.args);
  const Quantised want = oracle(x, rows, cols, group);
  const Size tile = tile_size(group, cols);
  const int64_t tile_rows = (rows + tile.rows - 1) / tile.rows, tile_cols = cols ? (cols + tile.cols - 1) / tile.cols : 0;
  int64_t wrong = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      if (code_at(b, r, c) != want.codes[r * cols + c] && wrong++ == 0)
        ADD_FAILURE() << "[" << r << ", " << c << "] " << x[r * cols + c] << ": code " << code_at(b, r, c) << ", not "
                      << int{want.codes[r * cols + c]};
  for (int64_t tr = 0; tr < tile_rows; ++tr)
    for (int64_t tc = 0; tc < tile_cols; ++tc) {
      const int64_t at = scale_offset(b, tr, tc), tile_index = tr * tile_cols + tc;
      if (is_fp4(group))
        EXPECT_EQ(b.scales[at], want.scale_bytes[tile_index]);
      else
        EXPECT_EQ(get(b.scales, at, DType::f32), want.scales[tile_index]);
    }
  const int64_t end = (rows * b.args.output.strides[0]) / (is_fp4(group) ? 2 : 1);
  EXPECT_EQ(b.output[end], kUntouched) << "written behind the end";
  for (const DType to : {DType::f32, DType::bf16, DType::f16}) {
    std::vector<uint8_t> memory((rows * (cols + 3) + 1) * 4, kUntouched);
    TensorView out(memory.data(), to, {rows, cols});
    out.strides[0] = cols + 3;
    dequantize(context, {.input = b.args.output, .group = group, .scales = b.args.scales, .output = out});
    for (int64_t r = 0; r < rows && wrong == 0; ++r)
      for (int64_t c = 0; c < cols; ++c) {
        const int code = want.codes[r * cols + c];
        const int64_t t = r / tile.rows * tile_cols + c / tile.cols;
        const double scale = is_fp4(group) ? std::ldexp(1.0, want.scale_bytes[t] - 127) : want.scales[t];
        const bool nan = is_fp4(group) ? want.scale_bytes[t] == 255 : (code & 127) == 127;
        const auto product = static_cast<float>((is_fp4(group) ? e2m1_value(code) : e4m3_value(code)) * scale);
        const float got = get(memory, r * (cols + 3) + c, to);
        if (nan) {
          EXPECT_TRUE(std::isnan(got)) << r << ", " << c;
          continue;
        }
        const float rounded = to == DType::f32    ? product
                              : to == DType::bf16 ? bf16_to_f32(f32_to_bf16(product))
                                                  : f16_to_f32(f32_to_f16(product));
        if ((got != rounded || std::signbit(got) != std::signbit(rounded)) && wrong++ == 0)
          ADD_FAILURE() << "[" << r << ", " << c << "] decodes to " << got << ", not " << rounded << " in " << name(to);
      }
    EXPECT_EQ(memory[(rows * (cols + 3)) * (to == DType::f32 ? 4 : 2)], kUntouched);
  }
}

constexpr ScaleGroup kAllGroups[] = {ScaleGroup::group_1x128, ScaleGroup::row, ScaleGroup::block_128x128,
                                     ScaleGroup::group_1x32};
constexpr DType kFloats[] = {DType::f32, DType::bf16, DType::f16};

float representable(float value, DType dtype) {
  if (dtype == DType::bf16) return bf16_to_f32(f32_to_bf16(value));
  if (dtype == DType::f16) return f16_to_f32(f32_to_f16(value));
  return value;
}

std::vector<float> random_values(Rng& rng, int64_t count, DType dtype, float stddev) {
  std::vector<float> x = test::normal_f32(rng, count, stddev);
  for (float& value : x) value = representable(value, dtype);
  return x;
}

TEST(Quant, MatchesTheOracleOnRandomShapes) {
  Rng rng(1);
  for (const ScaleGroup group : kAllGroups)
    for (const DType dtype : kFloats)
      for (const Size size : {Size{1, 128}, Size{3, 32}, Size{1, 2}, Size{7, 200}, Size{130, 258}, Size{2, 2304},
                              Size{129, 1154}, Size{5, 1024}, Size{0, 64}, Size{4, 0}}) {
        const Layout layout{static_cast<int64_t>(rng() % 3) * 5, static_cast<int64_t>(rng() % 3) * 2, rng() % 2 == 0};
        const float stddev = std::exp2(static_cast<float>(rng() % 20) - 8.0f);
        check(random_values(rng, size.rows * size.cols, dtype, stddev), size.rows, size.cols, dtype, group, layout,
              1 + static_cast<int>(rng() % 3));
      }
  check(random_values(rng, 9 * 77, DType::f32, 1.0f), 9, 77, DType::f32, ScaleGroup::group_1x128);  // odd columns: fp8 only
}

TEST(Quant, ThreadsDoNotChangeABit) {
  Rng rng(2);
  for (const ScaleGroup group : kAllGroups)
    check(random_values(rng, 600 * 384, DType::bf16, 1.0f), 600, 384, DType::bf16, group, {}, 4);
}

TEST(Quant, SpecialValuesAnywhereInAGroup) {
  Rng rng(3);
  const float specials[] = {0.0f, -0.0f, kNan, -kNan, kInf, -kInf, kMax, -kMax, kTiny, -kTiny, 0x1p-126f, 1e-10f, 1e-11f};
  for (const ScaleGroup group : kAllGroups)
    for (int i = 0; i < 60; ++i) {
      std::vector<float> x = random_values(rng, 3 * 160, DType::f32, 1.0f);
      for (int n = 0; n <= i / 10; ++n) x[rng() % x.size()] = specials[rng() % std::size(specials)];
      check(x, 3, 160, DType::f32, group);
    }
  for (const ScaleGroup group : kAllGroups)
    for (const float value : specials) check(std::vector<float>(2 * 64, value), 2, 64, DType::f32, group);
}

// The table of docs/stages/quant.md, in bits.
TEST(Quant, Fp8TableOfSpecialValues) {
  struct Row {
    std::vector<float> values;
    float scale;
    std::vector<int> codes;
  };
  const float smallest = 1e-10f / 448.0f, unit = 448.0f / 448.0f;
  const Row table[] = {
      {{0.0f, -0.0f}, smallest, {0x00, 0x80}},
      {{kTiny, -kTiny}, smallest, {0x00, 0x80}},
      {{1e-10f, -1e-11f}, smallest, {0x7e, 0xe3}},  // 44.8 is nearest to 44
      {{448.0f, kNan}, unit, {0x7e, 0x7f}},
      {{448.0f, -kNan}, unit, {0x7e, 0xff}},
      {{kNan, kNan}, smallest, {0x7f, 0x7f}},
      {{1.0f, kInf}, kMax / 448.0f, {0x00, 0x7e}},
      {{-1.0f, -kInf}, kMax / 448.0f, {0x80, 0xfe}},
      {{-kMax, 0.0f}, kMax / 448.0f, {0xfe, 0x00}},
      {{448.0f, 0x1p-9f, 0x1p-10f, 0x3p-10f}, unit, {0x7e, 0x01, 0x00, 0x02}},  // subnormal codes, ties to even
      {{448.0f, 17.0f, 19.0f, -17.5f}, unit, {0x7e, 0x58, 0x5a, 0xd9}},         // ties to even; nearest
  };
  Context context;
  for (const Row& row : table) {
    const auto cols = static_cast<int64_t>(row.values.size());
    Buffers b = make(row.values, 1, cols, DType::f32, ScaleGroup::group_1x128);
    quantize(context, b.args);
    EXPECT_EQ(get(b.scales, 0, DType::f32), row.scale);
    for (int64_t c = 0; c < cols; ++c) EXPECT_EQ(code_at(b, 0, c), row.codes[c]) << row.values[c];
  }
}

TEST(Quant, Mxfp4TableOfSpecialValues) {
  struct Row {
    std::vector<float> values;
    int scale;
    std::vector<int> codes;
  };
  const Row table[] = {
      {{0.0f, -0.0f}, 0, {0, 8}},
      {{kTiny, -kTiny}, 0, {0, 8}},
      {{0x1p-126f, -0x1p-127f}, 0, {4, 10}},  // at the lower end of e8m0 the scale is 2^-127: codes 2 and -1
      {{6.0f, 0.25f, 0.75f, 1.25f}, 127, {7, 0, 2, 2}},
      {{-4.0f, 1.75f, 2.5f, 3.5f}, 127, {14, 4, 4, 6}},
      {{7.99f, 5.0f, -0.25f, 0.26f}, 127, {7, 6, 8, 1}},  // 7.99 saturates
      {{8.0f, 1.0f}, 128, {6, 1}},
      {{kNan, 3.0f}, 255, {0, 0}},
      {{kInf, 3.0f}, 252, {7, 0}},
      {{-kInf, -3.0f}, 252, {15, 8}},
      {{kMax, 0.0f}, 252, {7, 0}},
  };
  Context context;
  for (const Row& row : table) {
    const auto cols = static_cast<int64_t>(row.values.size());
    Buffers b = make(row.values, 1, cols, DType::f32, ScaleGroup::group_1x32);
    quantize(context, b.args);
    EXPECT_EQ(b.scales[0], row.scale) << row.values[0];
    for (int64_t c = 0; c < cols; ++c) EXPECT_EQ(code_at(b, 0, c), row.codes[c]) << row.values[c];
  }
}

TEST(Quant, DecodesEveryCodeWithEveryKindOfScale) {
  std::vector<uint8_t> codes(256);
  for (int i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i);
  Context context;
  for (float scale : {1.0f, 0.37f, kMax, kTiny, kNan}) {
    std::vector<float> out(256), scales(2, scale);
    dequantize(context, {.input = ConstTensorView(codes.data(), DType::fp8_e4m3, {1, 256}),
                         .scales = ConstTensorView(scales.data(), DType::f32, {1, 2}),
                         .output = TensorView(out.data(), DType::f32, {1, 256})});
    for (int i = 0; i < 256; ++i) {
      if ((i & 127) == 127 || std::isnan(scale))
        EXPECT_TRUE(std::isnan(out[i])) << i;
      else
        EXPECT_EQ(out[i], static_cast<float>(e4m3_value(i) * double{scale})) << i << " x " << scale;
    }
  }
  for (const int byte : {0, 1, 127, 254, 255}) {
    std::vector<float> out(512);
    std::vector<uint8_t> scales(16, static_cast<uint8_t>(byte));
    dequantize(context, {.input = ConstTensorView(codes.data(), DType::fp4_e2m1, {1, 512}),
                         .group = ScaleGroup::group_1x32,
                         .scales = ConstTensorView(scales.data(), DType::e8m0, {1, 16}),
                         .output = TensorView(out.data(), DType::f32, {1, 512})});
    for (int i = 0; i < 512; ++i) {
      const int code = i % 2 == 0 ? (i / 2) & 15 : (i / 2) >> 4;
      if (byte == 255)
        EXPECT_TRUE(std::isnan(out[i]));
      else
        EXPECT_EQ(out[i], static_cast<float>(std::ldexp(e2m1_value(code), byte - 127))) << code << " byte " << byte;
    }
  }
}

TEST(Quant, RowsBehindTheValidOnesAreNotTouched) {
  Rng rng(4);
  Context context;
  for (const ScaleGroup group : kAllGroups)
    for (const int32_t valid : {-1, 0, 3, 130, 200, 999}) {
      const int64_t rows = 200, cols = 64, counted = std::clamp(valid, 0, 200);
      std::vector<float> x = random_values(rng, rows * cols, DType::bf16, 1.0f);
      Buffers b = make(x, rows, cols, DType::bf16, group);
      b.args.num_valid_rows = ConstTensorView(&valid, DType::i32, {1});
      quantize(context, b.args);
      x.resize(counted * cols);
      const Quantised want = oracle(x, counted, cols, group);
      for (int64_t i = 0; i < counted * cols; ++i) ASSERT_EQ(code_at(b, i / cols, i % cols), want.codes[i]) << i;
      for (size_t i = counted * cols / (is_fp4(group) ? 2 : 1); i < b.output.size(); ++i) ASSERT_EQ(b.output[i], kUntouched);
      const size_t scale_bytes = is_fp4(group) ? want.scale_bytes.size() : want.scales.size() * 4;
      for (size_t i = scale_bytes; i < b.scales.size(); ++i) ASSERT_EQ(b.scales[i], kUntouched) << i;
    }
}

TEST(Quant, WrongArgumentsNameValueAndRule) {
  Context context;
  const auto refused = [&](ScaleGroup group, std::vector<std::string> mentions, auto change) {
    Buffers b = make(std::vector<float>(256 * 256), 256, 256, DType::bf16, group);
    change(b.args);
    expect_error(ErrorCode::invalid_argument, mentions, [&] { quantize(context, b.args); });
    EXPECT_EQ(b.output[0], kUntouched);
  };
  refused(ScaleGroup::row, {"input is u8", "bf16|f16|f32"}, [](QuantArgs& a) { a.input.dtype = DType::u8; });
  refused(ScaleGroup::row, {"output is fp4_e2m1", "fp8_e4m3"}, [](QuantArgs& a) { a.output.dtype = DType::fp4_e2m1; });
  refused(ScaleGroup::group_1x32, {"output is fp8_e4m3", "fp4_e2m1"},
          [](QuantArgs& a) { a.output.dtype = DType::fp8_e4m3; });
  refused(ScaleGroup::group_1x32, {"[256, 255]", "even"}, [](QuantArgs& a) { a.input.shape[1] = a.output.shape[1] = 255; });
  refused(ScaleGroup::group_1x32, {"strides [257, 1]", "even"}, [](QuantArgs& a) { a.output.strides[0] = 257; });
  refused(ScaleGroup::group_1x128, {"group_1x128", "[256, 256]", "f32[256, 3]", "[256, 2]"},
          [](QuantArgs& a) { a.scales.shape[1] = 3; });
  refused(ScaleGroup::block_128x128, {"block_128x128", "[2, 2]"}, [](QuantArgs& a) { a.scales.shape[0] = 256; });
  refused(ScaleGroup::group_1x32, {"e8m0"}, [](QuantArgs& a) { a.scales.dtype = DType::u8; });
  refused(ScaleGroup::row, {"scales", "[256]"}, [](QuantArgs& a) { a.scales.ndim = 2; });
  refused(ScaleGroup::row, {"group is 9"}, [](QuantArgs& a) { a.group = static_cast<ScaleGroup>(9); });
  refused(ScaleGroup::row, {"num_valid_rows"}, [](QuantArgs& a) { a.num_valid_rows = a.scales; });
  refused(ScaleGroup::row, {"'quant.fast'", "auto, quant.cpu"}, [](QuantArgs& a) { a.variant = "quant.fast"; });
  Buffers b = make(std::vector<float>(4 * 32), 4, 32, DType::bf16, ScaleGroup::row);
  const DequantArgs args{.input = b.args.output, .group = ScaleGroup::row, .scales = b.args.scales, .output = b.args.output};
  expect_error(ErrorCode::invalid_argument, {"output is fp8_e4m3", "bf16|f16|f32"}, [&] { dequantize(context, args); });
}

TEST(Quant, FormatNamesRoundTrip) {
  for (const char* text : {"none", "fp8", "fp8_channel", "mxfp4"}) EXPECT_EQ(name(quant_format_from_name(text)), text);
  expect_error(ErrorCode::invalid_argument, {"int8", "none, fp8, fp8_channel, mxfp4"},
               [] { quant_format_from_name("int8"); });
}

TEST(Quant, CostCountsEveryByteOnce) {
  Buffers b = make(std::vector<float>(256 * 256), 256, 256, DType::bf16, ScaleGroup::group_1x32);
  const Cost cost = quantize_cost(b.args);
  EXPECT_EQ(cost.bytes_read, 256 * 256 * 2);
  EXPECT_EQ(cost.bytes_written, 256 * 128 + 256 * 8);
  EXPECT_EQ(quant_variants().at(0).id, "quant.cpu");
  EXPECT_EQ(dequant_variants().at(0).id, "dequant.cpu");
}

}  // namespace
}  // namespace mixlane
