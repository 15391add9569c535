// Every quantisation variant of the GPU against the CPU's, bit by bit.
#include "support/gpu.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <limits>

#include "core/numeric.hpp"
#include "ops/quant/launchers.hpp"
#include "ops/quant/op.hpp"
#include "support/random.hpp"
#include "wave16.hpp"

namespace mixlane {
namespace {

using namespace test;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr char kPoison = static_cast<char>(0xa5);
constexpr ScaleGroup kGroups[] = {ScaleGroup::group_1x128, ScaleGroup::row, ScaleGroup::block_128x128,
                                  ScaleGroup::group_1x32};

struct Problem {
  int64_t rows = 0, cols = 0;
  ScaleGroup group = ScaleGroup::group_1x128;
  DType dtype = DType::bf16;                      // of the unquantised side
  int64_t input_padding = 0, output_padding = 0;  // even
  bool transposed_scales = false;
  std::vector<int32_t> valid_rows = {};
  std::vector<float> values = {};
  std::vector<uint8_t> codes = {};  // for dequantize
};

bool is_fp4(ScaleGroup group) { return group == ScaleGroup::group_1x32; }

std::string describe(const Problem& p) {
  return fmt::format("[{}, {}] group {} {} padding {} {} transposed {}", p.rows, p.cols, static_cast<int>(p.group),
                     name(p.dtype), p.input_padding, p.output_padding, p.transposed_scales);
}

// Host memory, poisoned, and its twin where the arguments are on the GPU.
class Memory {
 public:
  Memory(Device device, int64_t offset) : device_(device), offset_(offset) {}

  template <class View>
  std::vector<char>& place(View& view, DType dtype, std::initializer_list<int64_t> shape, int64_t row_stride,
                           int64_t bytes) {
    std::vector<char>& memory = buffers_.emplace_back(static_cast<size_t>(bytes) + 1, kPoison);
    view = View(memory.data(), dtype, shape, device_);
    if (view.ndim == 2) view.strides[0] = row_stride;
    if (device_.type != DeviceType::cpu)
      view.data = twins_.emplace_back(memory.data(), bytes + 1, offset_ * std::max(bits(dtype) / 8, 1)).data();
    return memory;
  }
  void send(Stream stream) {
    for (const Twin& twin : twins_) twin.send(stream);
  }
  void fetch(Stream stream) {
    for (const Twin& twin : twins_) twin.fetch(stream);
    gpu::synchronize(stream);
  }
  const std::vector<char>& buffer(int i) const { return buffers_[i]; }

 private:
  Device device_;
  int64_t offset_;  // in values, from what is aligned
  std::deque<std::vector<char>> buffers_;
  std::deque<Twin> twins_;
};

void put(std::vector<char>& memory, int64_t at, DType dtype, float value) {
  const uint16_t half = dtype == DType::f16 ? f32_to_f16(value) : f32_to_bf16(value);
  if (dtype == DType::f32)
    std::memcpy(&memory[at * 4], &value, 4);
  else
    std::memcpy(&memory[at * 2], &half, 2);
}

// Scales of a problem; transposed ones are column major.
void place_scales(Memory& memory, TensorView& view, const Problem& p) {
  const ScaleTiles tiles(p.group, p.rows, p.cols);
  const DType dtype = is_fp4(p.group) ? DType::e8m0 : DType::f32;
  const int64_t bytes = tiles.rows * tiles.cols * bits(dtype) / 8;
  if (p.group == ScaleGroup::row)
    memory.place(view, dtype, {tiles.rows}, 1, bytes);
  else
    memory.place(view, dtype, {tiles.rows, tiles.cols}, tiles.cols, bytes);
  if (p.transposed_scales && p.group != ScaleGroup::row) view.strides = {1, tiles.rows};
}

struct QuantCall : Memory {
  QuantCall(const Problem& p, Device device, int64_t offset) : Memory(device, offset) {
    const int64_t in = p.cols + p.input_padding, out = p.cols + p.output_padding;
    const DType code = is_fp4(p.group) ? DType::fp4_e2m1 : DType::fp8_e4m3;
    args.group = p.group;
    std::vector<char>& input = place(args.input, p.dtype, {p.rows, p.cols}, in, p.rows * in * bits(p.dtype) / 8);
    for (int64_t r = 0; r < p.rows; ++r)
      for (int64_t c = 0; c < p.cols; ++c) put(input, r * in + c, p.dtype, p.values[r * p.cols + c]);
    place(args.output, code, {p.rows, p.cols}, out, size_bytes(code, p.rows * out));
    place_scales(*this, args.scales, p);
    if (p.valid_rows.empty()) return;
    std::vector<char>& count = place(args.num_valid_rows, DType::i32, {1}, 1, 4);
    std::memcpy(count.data(), p.valid_rows.data(), 4);
  }
  QuantArgs args;
};

struct DequantCall : Memory {
  DequantCall(const Problem& p, const QuantCall& from, Device device, int64_t offset) : Memory(device, offset) {
    const int64_t in = p.cols + p.output_padding, out = p.cols + p.input_padding;
    args.group = p.group;
    const DType code = is_fp4(p.group) ? DType::fp4_e2m1 : DType::fp8_e4m3;
    place(args.input, code, {p.rows, p.cols}, in, size_bytes(code, p.rows * in)) = from.buffer(1);
    TensorView scales;
    place_scales(*this, scales, p);
    args.scales = scales;
    const_cast<std::vector<char>&>(buffer(1)) = from.buffer(2);
    place(args.output, p.dtype, {p.rows, p.cols}, out, p.rows * out * bits(p.dtype) / 8);
  }
  DequantArgs args;
};

// As bits, all NaNs alike.
std::vector<uint32_t> values_of(const Problem& p, const std::vector<char>& memory) {
  std::vector<uint32_t> all;
  const int64_t stride = p.cols + p.input_padding;
  for (int64_t i = 0; i < p.rows * stride; ++i) {
    uint32_t bits32 = 0;
    const int bytes = bits(p.dtype) / 8;
    std::memcpy(&bits32, memory.data() + i * bytes, bytes);
    const float value = p.dtype == DType::f32    ? std::bit_cast<float>(bits32)
                        : p.dtype == DType::bf16 ? bf16_to_f32(static_cast<uint16_t>(bits32))
                                                 : f16_to_f32(static_cast<uint16_t>(bits32));
    all.push_back(std::isnan(value) ? 0x7fc00000u : bits32);
  }
  return all;
}

Problem random_problem(Rng& rng) {
  Problem p;
  p.group = kGroups[rng() % 4];
  p.rows = static_cast<int64_t>(rng() % (rng() % 2 ? 5 : 300));
  p.cols = static_cast<int64_t>(1 + rng() % (rng() % 3 ? 300 : 3000));
  if (rng() % 2) p.cols = (p.cols + 127) / 128 * 128;
  if (is_fp4(p.group)) p.cols += p.cols % 2;
  constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};
  p.dtype = kTypes[rng() % 3];
  p.input_padding = static_cast<int64_t>(rng() % 2 * (rng() % 17));
  p.output_padding = static_cast<int64_t>(rng() % 2 * (rng() % 9) * 2);
  p.transposed_scales = rng() % 2;
  if (rng() % 3 == 0) p.valid_rows = {static_cast<int32_t>(rng() % (p.rows + 4)) - 2};
  p.values = normal_f32(rng, p.rows * p.cols, 1.0f);
  const int spread = static_cast<int>(rng() % 3) * 30;
  for (float& value : p.values) {
    if (spread) value = std::ldexp(value, static_cast<int>(rng() % (2 * spread)) - spread);
    if (rng() % 16 == 0) value = std::round(value * 8) / 8;
    if (rng() % 5000 == 0) value = rng() % 2 ? kInf : -kInf;
    if (rng() % 3000 == 0) value = std::copysign(kNan, rng() % 2 ? 1.0f : -1.0f);
    if (rng() % 50 == 0) value = std::copysign(0.0f, value);
  }
  return p;
}

class QuantGpu : public GpuTest {
 protected:
  void check(const Problem& p, int64_t offset = 0) {
    SCOPED_TRACE(describe(p));
    Context cpu({.num_threads = 1}), context({.device = gpu_device()});
    const gpu::OwnedStream stream(gpu_device());
    QuantCall expected(p, {}, 0), got(p, gpu_device(), is_fp4(p.group) ? 0 : offset);
    quantize(cpu, expected.args);
    got.send(stream.get());
    quantize(context, got.args, stream.get());
    got.fetch(stream.get());
    EXPECT_EQ(got.buffer(1), expected.buffer(1)) << "codes";
    EXPECT_EQ(got.buffer(2), expected.buffer(2)) << "scales";
    if (!p.valid_rows.empty()) return;

    DequantCall back(p, expected, {}, 0), got_back(p, expected, gpu_device(), is_fp4(p.group) ? 0 : offset);
    dequantize(cpu, back.args);
    got_back.send(stream.get());
    dequantize(context, got_back.args, stream.get());
    got_back.fetch(stream.get());
    EXPECT_EQ(values_of(p, got_back.buffer(2)), values_of(p, back.buffer(2))) << "dequantised";
  }
};

TEST_F(QuantGpu, RandomMatrices) {
  Rng rng(1);
  for (int i = 0; i < 400 && !HasFailure(); ++i) check(random_problem(rng));
}

TEST_F(QuantGpu, MisalignedTensors) {
  Rng rng(2);
  for (int i = 0; i < 80 && !HasFailure(); ++i) check(random_problem(rng), 1 + i % 7);
}

// Every bf16 and f16 value, and f32 values around every halfway point, in tiles of several scales.
TEST_F(QuantGpu, EveryShortValue) {
  for (const DType dtype : {DType::bf16, DType::f16})
    for (const ScaleGroup group : kGroups) {
      Problem p;
      p.rows = 512;
      p.cols = 128;
      p.group = group;
      p.dtype = dtype;
      for (uint32_t i = 0; i < 65536; ++i) {
        // Neighbours in exponent share a tile.
        const auto half = static_cast<uint16_t>(i);
        p.values.push_back(dtype == DType::bf16 ? bf16_to_f32(half) : f16_to_f32(half));
      }
      check(p);
    }
}

TEST_F(QuantGpu, HalfwayPoints) {
  Rng rng(3);
  for (const ScaleGroup group : kGroups)
    for (int round = 0; round < 20; ++round) {
      Problem p;
      p.rows = 64;
      p.cols = 1024;
      p.group = group;
      p.dtype = DType::f32;
      const float amax = std::fabs(normal_f32(rng, 1, 1.0f)[0]) + 0.01f;
      const float scale = is_fp4(group) ? std::ldexp(1.0f, std::ilogb(amax) - 2) : amax / 448.0f;
      for (int64_t i = 0; i < p.rows * p.cols; ++i) {
        const uint8_t code = static_cast<uint8_t>(rng() % (is_fp4(group) ? 7 : 126));
        const float low = is_fp4(group) ? e2m1_to_f32(code) : e4m3_to_f32(code);
        const float high = is_fp4(group) ? e2m1_to_f32(code + 1) : e4m3_to_f32(code + 1);
        const float near =
            std::bit_cast<float>(std::bit_cast<int32_t>((low + high) / 2 * scale) + static_cast<int32_t>(rng() % 7) - 3);
        p.values.push_back(std::clamp(i % 32 == 0 ? amax : near, 0.0f, amax) * (rng() % 2 ? 1.0f : -1.0f));
      }
      check(p);
      if (HasFailure()) return;
    }
}

TEST_F(QuantGpu, LargeRows) {
  Rng rng(4);
  for (const ScaleGroup group : kGroups)
    for (const int64_t cols : {7168, 40000}) {
      Problem p;
      p.rows = 200;
      p.cols = cols;
      p.group = group;
      p.values = normal_f32(rng, p.rows * p.cols, 3.0f);
      check(p);
    }
}

// As many groups as make threads take several rows, and of scales by column waves that go down the rows; a last band that is
// cut, rows that end in the middle of one, groups that are not whole.
TEST_F(QuantGpu, ManyRows) {
  Rng rng(7);
  Problem p;
  p.cols = 6656;
  p.rows = int64_t{gpu::num_multiprocessors(0)} * 2048 * 4 / (p.cols / 8) + 3;
  const int64_t all_rows = p.rows;
  const std::vector<float> values = normal_f32(rng, p.rows * p.cols, 3.0f);
  for (const ScaleGroup group : {ScaleGroup::group_1x32, ScaleGroup::group_1x128})
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      p.group = group;
      p.dtype = dtype;
      p.rows = all_rows;
      p.values = values;
      p.valid_rows = {};
      p.transposed_scales = true;
      check(p);
      p.rows = all_rows / 3;
      p.values.resize(p.rows * p.cols);
      p.transposed_scales = dtype != DType::f32;
      check(p);
      p.transposed_scales = true;
      p.valid_rows = {static_cast<int32_t>(p.rows) - 5};
      check(p);
      p.cols -= 18;
      p.values.resize(p.rows * p.cols);
      check(p);
      p.cols += 18;
      if (HasFailure()) return;
    }
}

TEST_F(QuantGpu, WaveOf16) {
  Rng rng(5);
  for (int i = 0; i < 40 && !HasFailure(); ++i) {
    Problem p = random_problem(rng);
    p.group = i % 2 ? ScaleGroup::row : ScaleGroup::block_128x128;
    p.dtype = DType::bf16;
    const bool square = i % 2 == 0;
    const ScaleTiles tiles(p.group, p.rows, p.cols);
    if (p.rows == 0) continue;
    Context cpu({.num_threads = 1});
    const gpu::OwnedStream stream(gpu_device());
    QuantCall expected(p, {}, 0), got(p, gpu_device(), 0);
    quantize(cpu, expected.args);
    got.send(stream.get());
    launch_tiles_of_16(quant_gpu::make_args(got.args), static_cast<uint32_t>(tiles.rows * tiles.cols), square, stream.get());
    got.fetch(stream.get());
    EXPECT_EQ(got.buffer(1), expected.buffer(1)) << "codes";
    EXPECT_EQ(got.buffer(2), expected.buffer(2)) << "scales";
  }
}

TEST_F(QuantGpu, GraphReadsTheRowCount) {
  Rng rng(6);
  for (const ScaleGroup group : kGroups) {
    Problem p;
    p.rows = 300;
    p.cols = 512;
    p.group = group;
    p.values = normal_f32(rng, p.rows * p.cols, 3.0f);
    p.valid_rows = {0};
    Context cpu({.num_threads = 1}), context({.device = gpu_device()});
    QuantCall captured(p, gpu_device(), 0);
    const gpu::OwnedStream stream(gpu_device());
    const gpu::Graph graph =
        gpu::Graph::capture(gpu_device(), [&](Stream capturing) { quantize(context, captured.args, capturing); });
    for (const int rows : {0, 300, 1, 129, -3, 500}) {
      SCOPED_TRACE(rows);
      p.valid_rows[0] = rows;
      QuantCall expected(p, {}, 0), fresh(p, gpu_device(), 0);
      const_cast<std::vector<char>&>(captured.buffer(1)) = fresh.buffer(1);
      const_cast<std::vector<char>&>(captured.buffer(2)) = fresh.buffer(2);
      const_cast<std::vector<char>&>(captured.buffer(3)) = fresh.buffer(3);
      captured.send(stream.get());
      graph.launch(stream.get());
      captured.fetch(stream.get());
      quantize(cpu, expected.args);
      EXPECT_EQ(captured.buffer(1), expected.buffer(1));
      EXPECT_EQ(captured.buffer(2), expected.buffer(2));
    }
  }
}

}  // namespace
}  // namespace mixlane
