// What the kernel gets, and its launcher. No formatting library here: nvcc stumbles over it.
#pragma once

#include "mixlane/core.hpp"

namespace mixlane::expert_major_gpu {

// Rows of one matrix, in bytes.
struct RowPair {
  const std::byte* from = nullptr;
  int64_t from_stride = 0;
  std::byte* to = nullptr;
  int64_t to_stride = 0;
  uint32_t row_bytes = 0;
};

struct GatherArgs {
  RowPair rows;    // multiples of 16 bytes
  RowPair scales;  // multiples of 4 bytes; row_bytes 0: none
  const int32_t* sorted_rows = nullptr;
  const int32_t* num_padded = nullptr;
  uint32_t num_rows = 0;
  uint32_t capacity = 0;
};

void launch_gather(const GatherArgs& args, int num_multiprocessors, Stream stream);

}  // namespace mixlane::expert_major_gpu
