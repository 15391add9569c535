// quant.cpu and dequant.cpu. The matrix is cut into strips: one row of scale tiles high, kRun columns wide (all of them
// where the tile is the row). A strip's magnitudes are found first, then its values are encoded while still in cache.
#include <algorithm>

#include "core/numeric.hpp"
#include "core/parallel.hpp"
#include "ops/quant/op.hpp"
#include "ops/quant/row.hpp"

namespace mixlane {
namespace {

constexpr int64_t kRun = 1024;  // values converted at a time: whole tiles, 4 KB of f32
constexpr int64_t kMaxStripTiles = kRun / 32;
constexpr int64_t kValuesPerThread = 65536;  // below it a thread costs more than it saves

template <class Byte>
auto* address(const BasicTensorView<Byte>& view, int64_t row, int64_t col) {
  return view.template as<uint8_t>() + (row * view.strides[0] + col) * bits(view.dtype) / 8;
}

struct Strip {
  int64_t tile_row, first_tile_col;
  int64_t tile_cols;  // columns of a tile
  int64_t row_begin, row_end, col_begin, col_end;

  // Calls body(row, col, count) for the runs of at most kRun values of every row.
  template <class Body>
  void for_each_run(Body&& body) const {
    for (int64_t row = row_begin; row < row_end; ++row)
      for (int64_t col = col_begin; col < col_end; col += kRun) body(row, col, std::min(kRun, col_end - col));
  }
  // Calls body(tile, offset, count) for the parts of a run that lie in one tile; tiles are counted inside the strip.
  template <class Body>
  void for_each_tile(int64_t run_count, Body&& body) const {
    for (int64_t tile = 0, offset = 0; offset < run_count; ++tile, offset += tile_cols)
      body(tile, offset, std::min(tile_cols, run_count - offset));
  }
  template <class Byte>
  int64_t scale_index(const BasicTensorView<Byte>& scales, int64_t tile) const {
    return tile_row * scales.strides[0] + (scales.ndim == 2 ? (first_tile_col + tile) * scales.strides[1] : 0);
  }
};

// Calls body(strip) for all strips of a matrix, rows of tiles shared out to the threads.
template <class Body>
void for_each_strip(const Context& context, ScaleGroup group, int64_t num_rows, int64_t num_cols, Body&& body) {
  const ScaleTiles tiles(group, num_rows, num_cols);
  const int64_t width = std::max(tiles.tile_cols, kRun);
  const int64_t grain = kValuesPerThread / std::max<int64_t>(tiles.tile_rows * num_cols, 1) + 1;
  parallel_ranges(context.num_threads(), tiles.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t tile_row = begin; tile_row < end; ++tile_row)
      for (int64_t col = 0; col < num_cols; col += width)
        body(Strip{tile_row, col / tiles.tile_cols, tiles.tile_cols, tile_row * tiles.tile_rows,
                   std::min(num_rows, (tile_row + 1) * tiles.tile_rows), col, std::min(num_cols, col + width)});
  });
}

void quantize_strip(const QuantArgs& args, const Strip& strip) {
  const bool fp4 = args.group == ScaleGroup::group_1x32;
  float buffer[kRun], scaled[kRun];
  const auto values_at = [&](int64_t row, int64_t col, int64_t count) {
    return quant::as_f32(address(args.input, row, col), args.input.dtype, count, buffer);
  };
  quant::Magnitude amax[kMaxStripTiles];
  strip.for_each_run([&](int64_t row, int64_t col, int64_t run_count) {
    const float* values = values_at(row, col, run_count);
    strip.for_each_tile(run_count, [&](int64_t tile, int64_t offset, int64_t count) {
      const quant::Magnitude part = quant::magnitude(values + offset, count);
      amax[tile] = {std::max(amax[tile].largest, part.largest), amax[tile].has_nan || part.has_nan};
    });
  });
  strip.for_each_run([&](int64_t row, int64_t col, int64_t run_count) {
    const float* values = values_at(row, col, run_count);
    strip.for_each_tile(run_count, [&](int64_t tile, int64_t offset, int64_t count) {
      const int64_t at = strip.scale_index(args.scales, tile);
      if (!fp4) {
        const float scale = args.scales.as<float>()[at] = quant::e4m3_scale(amax[tile]);
        quant::divide(values + offset, count, scale, scaled + offset);
      } else {
        const uint8_t scale = args.scales.as<uint8_t>()[at] = quant::e2m1_scale(amax[tile]);
        quant::divide_by_e8m0(values + offset, count, scale, scaled + offset);
      }
    });
    quant::encode(scaled, run_count, args.output.dtype, address(args.output, row, col));
  });
}

void dequantize_strip(const DequantArgs& args, const Strip& strip) {
  const bool fp4 = args.group == ScaleGroup::group_1x32;
  float values[kRun];
  strip.for_each_run([&](int64_t row, int64_t col, int64_t run_count) {
    quant::decode(address(args.input, row, col), run_count, args.input.dtype, values);
    strip.for_each_tile(run_count, [&](int64_t tile, int64_t offset, int64_t count) {
      const int64_t at = strip.scale_index(args.scales, tile);
      quant::multiply(values + offset, count,
                      fp4 ? e8m0_to_f32(args.scales.as<uint8_t>()[at]) : args.scales.as<float>()[at]);
    });
    quant::store(values, run_count, args.output.dtype, address(args.output, row, col));
  });
}

}  // namespace

void launch_quant_cpu(Context& context, const QuantArgs& args, Stream) {
  int64_t num_rows = args.input.shape[0];
  if (args.num_valid_rows.given()) num_rows = std::clamp<int64_t>(*args.num_valid_rows.as<int32_t>(), 0, num_rows);
  for_each_strip(context, args.group, num_rows, args.input.shape[1],
                 [&](const Strip& strip) { quantize_strip(args, strip); });
}

void launch_dequant_cpu(Context& context, const DequantArgs& args, Stream) {
  for_each_strip(context, args.group, args.input.shape[0], args.input.shape[1],
                 [&](const Strip& strip) { dequantize_strip(args, strip); });
}

}  // namespace mixlane
