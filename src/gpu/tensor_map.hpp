// Descriptors with which Hopper's copy engine finds boxes of a tensor in global memory.
#pragma once

#include <cstdint>

namespace mixlane::gpu {

// 128 bytes that the driver fills; a kernel gets them by value, as a MIXLANE_GRID_CONSTANT parameter.
struct alignas(64) TensorMap {
  uint64_t words[16] = {};
};

// What a box is cut from and how. Dimension 0 is contiguous and its box 128 or 64 bytes wide, which the copy swizzles: of
// row r of a box the 16-byte packet c lies at c ^ r % 8, or c ^ r / 2 % 4. Elements outside the tensor arrive as zeros.
struct TensorMapShape {
  const void* data = nullptr;     // aligned to 16 bytes
  int element_bytes = 1;          // 1 or 2
  int num_dims = 2;               // 2 to 5
  uint64_t sizes[5] = {};         // in elements
  uint64_t stride_bytes[4] = {};  // of dimensions 1 on: multiples of 16
  uint32_t box[5] = {};           // in elements, at most 256
};

// Throws internal with the sizes if the driver refuses them. A host computation: no stream, no device memory.
TensorMap encode_tensor_map(const TensorMapShape& shape);

}  // namespace mixlane::gpu
