#include "gpu/tensor_map.hpp"

#include <cuda.h>

#include "core/error.hpp"
#include "gpu/api.hpp"

namespace mixlane::gpu {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver is asked for its function: nothing links to the driver, so that programs start where there is none.
Encode find_encode() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status;
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status),
        "GetDriverEntryPointByVersion", "looking for cuTensorMapEncodeTiled");
  if (!found || status != cudaDriverEntryPointSuccess)
    fail(ErrorCode::unsupported, "the driver has no cuTensorMapEncodeTiled; it must support CUDA 12");
  return reinterpret_cast<Encode>(found);
}

}  // namespace

TensorMap encode_tensor_map(const TensorMapShape& shape) {
  static const Encode encode = find_encode();
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));
  constexpr cuuint32_t kUnit[5] = {1, 1, 1, 1, 1};
  TensorMap map;
  const CUresult result =
      encode(reinterpret_cast<CUtensorMap*>(&map),
             shape.element_bytes == 2 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8,
             static_cast<cuuint32_t>(shape.num_dims), const_cast<void*>(shape.data), shape.sizes, shape.stride_bytes,
             shape.box, kUnit, CU_TENSOR_MAP_INTERLEAVE_NONE,
             shape.box[0] * static_cast<uint32_t>(shape.element_bytes) == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                                             : CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    fail(ErrorCode::internal,
         "cuTensorMapEncodeTiled failed with error {}: sizes {}, strides {}, box {} of {} dimensions at {}",
         static_cast<int>(result), fmt::join(shape.sizes, "x"), fmt::join(shape.stride_bytes, ","),
         fmt::join(shape.box, "x"), shape.num_dims, shape.data);
  return map;
}

}  // namespace mixlane::gpu
