#include "gpu/launch.hpp"

#include "core/error.hpp"
#include "gpu/api.hpp"

namespace mixlane::gpu {
namespace {

std::string describe(const LaunchShape& shape) {
  return fmt::format("launching {} with {} blocks of {} threads, {} bytes of shared memory{}", shape.variant,
                     shape.num_blocks, shape.num_threads, shape.shared_bytes,
                     shape.cluster_blocks > 1 ? fmt::format(", clusters of {}", shape.cluster_blocks) : "");
}

void allow_shared_bytes(const void* kernel, int64_t bytes, const char* variant = "a kernel") {
  if (bytes <= 48 * 1024) return;
  const ApiError error = MIXLANE_GPU_API(FuncSetAttribute)(kernel, MIXLANE_GPU_API(FuncAttributeMaxDynamicSharedMemorySize),
                                                           static_cast<int>(bytes));
  if (error != MIXLANE_GPU_API(Success))
    check(error, "FuncSetAttribute", fmt::format("allowing {} {} bytes of shared memory", variant, bytes));
}

}  // namespace

int max_resident_blocks(const void* kernel, int num_threads, int64_t shared_bytes) {
  allow_shared_bytes(kernel, shared_bytes);
  int blocks = 0;
  check(MIXLANE_GPU_API(OccupancyMaxActiveBlocksPerMultiprocessor)(&blocks, kernel, num_threads,
                                                                   static_cast<size_t>(shared_bytes)),
        "OccupancyMaxActiveBlocksPerMultiprocessor",
        fmt::format("asking how many blocks of {} threads and {} bytes fit", num_threads, shared_bytes));
  return blocks;
}

#if defined(MIXLANE_HIP)

void launch_raw(const void* kernel, const LaunchShape& shape, void** args, Stream stream) {
  const dim3 grid(shape.num_blocks);
  const dim3 block(shape.num_threads);
  const auto shared = static_cast<size_t>(shape.shared_bytes);
  allow_shared_bytes(kernel, shape.shared_bytes, shape.variant);
  const ApiError error =
      shape.cooperative ? hipLaunchCooperativeKernel(kernel, grid, block, args, static_cast<unsigned>(shared), api(stream))
                        : hipLaunchKernel(kernel, grid, block, args, shared, api(stream));
  if (error != hipSuccess) check(error, "LaunchKernel", describe(shape));
}

#else

void launch_raw(const void* kernel, const LaunchShape& shape, void** args, Stream stream) {
  allow_shared_bytes(kernel, shape.shared_bytes, shape.variant);
  cudaLaunchAttribute attributes[3];
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.num_blocks);
  config.blockDim = dim3(shape.num_threads);
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = api(stream);
  config.attrs = attributes;
  if (shape.cluster_blocks > 1) {
    // More than 8 blocks are beyond what every device promises; this kernel's launcher asked the device before.
    if (shape.cluster_blocks > 8)
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "FuncSetAttribute",
            "allowing clusters of more than 8 blocks");
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {shape.cluster_blocks, 1, 1};
  }
  if (shape.cooperative) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  if (shape.overlaps_previous) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  const cudaError_t error = cudaLaunchKernelExC(&config, kernel, args);
  if (error != cudaSuccess) check(error, "LaunchKernelEx", describe(shape));
}

#endif

}  // namespace mixlane::gpu
