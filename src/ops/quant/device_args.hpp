// What the quantisation kernels get: QuantArgs and DequantArgs resolved to plain pointers and numbers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gpu/divider.hpp"
#include "mixlane/core.hpp"

namespace mixlane::quant_gpu {

// Rows of a matrix, in bytes.
template <class Byte>
struct Rows {
  Byte* data = nullptr;
  int64_t stride = 0;
  bool aligned = false;  // every octet of every row, to its size but at most 16 bytes

  // Whether every row begins at a multiple of this.
  bool begins_at(int64_t bytes) const {
    return reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(bytes) == 0 && stride % bytes == 0;
  }
};

template <class Value>
struct Scales {
  Value* data = nullptr;  // f32 or e8m0
  int64_t row_stride = 0;
  int64_t col_stride = 0;
};

struct QuantKernelArgs {
  Rows<const std::byte> input;
  Rows<std::byte> output;
  Scales<void> scales;
  const int32_t* num_valid_rows = nullptr;
  uint32_t num_rows = 0;
  uint32_t num_cols = 0;
  gpu::Divider by_tile_cols;  // tiles beside each other
  bool independent_of_previous = false;
};

struct DequantKernelArgs {
  Rows<const std::byte> input;
  Rows<std::byte> output;
  Scales<const void> scales;
  uint32_t num_rows = 0;
  uint32_t num_cols = 0;
  uint32_t row_shift = 0;  // log2 of a tile's rows and columns
  uint32_t col_shift = 0;
  gpu::Divider by_pieces;     // of a row
  bool whole_pieces = false;  // eight bytes of codes and 16 of values may be loaded and stored at once
};

// Values of a row that a wave of dequant.octets takes at once, eight bytes of codes per lane, and of how many rows: as many
// values either way.
constexpr int dequant_piece(bool fp4) { return fp4 ? 512 : 256; }
constexpr int dequant_rows(bool fp4) { return fp4 ? 1 : 2; }

}  // namespace mixlane::quant_gpu
