// The .npy format, versions 1 to 3: little-endian arrays in C order.
#pragma once

#include <filesystem>
#include <span>
#include <vector>

#include "io/owned_tensor.hpp"

namespace mixlane {

struct NpyHeader {
  DType dtype = DType::f32;
  std::vector<int64_t> shape;  // at most kMaxDims
  int64_t data_offset = 0;     // in the file
  int64_t data_bytes = 0;
};

// `start` holds the file's first min(file_bytes, kMaxNpyHeaderBytes) bytes. Types: <f2 <f4 <f8 <i4 <i8 |u1, and bf16,
// which numpy has no name for, as <u2, <V2 or |V2. Throws bad_format naming the file and what is wrong with it.
inline constexpr int64_t kMaxNpyHeaderBytes = 1 << 16;
NpyHeader parse_npy_header(std::span<const std::byte> start, int64_t file_bytes, std::string_view file_name);

OwnedTensor load_npy(const std::filesystem::path& file);

// Contiguous, on the CPU; bf16 is written as <V2. Other types numpy has no name for are refused.
void save_npy(const std::filesystem::path& file, const ConstTensorView& view);

}  // namespace mixlane
