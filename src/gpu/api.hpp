// The vendor's runtime under one spelling. Included only by src/gpu: MIXLANE_GPU_API(Malloc) is cudaMalloc or hipMalloc.
#pragma once

#if defined(MIXLANE_HIP)
#include <hip/hip_runtime.h>
#define MIXLANE_GPU_API(name) hip##name
#else
#include <cuda_runtime.h>
#define MIXLANE_GPU_API(name) cuda##name
#endif

#include "gpu/runtime.hpp"

namespace mixlane::gpu {

#if defined(MIXLANE_HIP)
inline constexpr const char* kVendor = "AMD";
inline constexpr auto kAttributeMultiprocessors = hipDeviceAttributeMultiprocessorCount;
inline constexpr auto kAttributeMajor = hipDeviceAttributeComputeCapabilityMajor;
inline constexpr auto kAttributeMinor = hipDeviceAttributeComputeCapabilityMinor;
inline constexpr auto kAttributeSharedBytes = hipDeviceAttributeMaxSharedMemoryPerBlock;
#else
inline constexpr const char* kVendor = "NVIDIA";
inline constexpr auto kAttributeMultiprocessors = cudaDevAttrMultiProcessorCount;
inline constexpr auto kAttributeMajor = cudaDevAttrComputeCapabilityMajor;
inline constexpr auto kAttributeMinor = cudaDevAttrComputeCapabilityMinor;
inline constexpr auto kAttributeSharedBytes = cudaDevAttrMaxSharedMemoryPerBlockOptin;
#endif

using ApiError = MIXLANE_GPU_API(Error_t);
using ApiStream = MIXLANE_GPU_API(Stream_t);

// Throws `code` (out_of_memory where the runtime says so) with the call, what it was for, and the runtime's own words.
void check(ApiError error, const char* call, const std::string& purpose, ErrorCode code = ErrorCode::internal);

inline ApiStream api(Stream stream) { return static_cast<ApiStream>(stream.handle); }

}  // namespace mixlane::gpu
