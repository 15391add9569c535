// The rate of the tensor cores of sm_90, with nothing else in the way.
#include "gpu/device.hpp"
#include "gpu/launch.hpp"
#include "gpu/numeric.cuh"
#include "gpu_kernels.hpp"

namespace mixlane::bench {
namespace {

// A block multiplies as one of a large product does that has a tile of 128 x 256: two groups of four waves, each with 64
// rows of its own against the same 256 columns, slices of 128 bytes along k. The slices' layout is that of swizzled matrix
// descriptors; their values are random, and so any layout holds random values.
constexpr uint32_t kGroupThreads = 128;
constexpr uint32_t kThreads = 2 * kGroupThreads;
constexpr uint32_t kSliceBytes = 128;
constexpr uint32_t kNumSlices = 4;
constexpr uint32_t kRowBytes = 64 * kSliceBytes;      // one slice of a group's rows
constexpr uint32_t kColumnBytes = 256 * kSliceBytes;  // one slice of the columns
constexpr uint32_t kDataBytes = kNumSlices * (2 * kRowBytes + kColumnBytes);
constexpr uint32_t kPatternBytes = 1024;  // of the swizzle: the alignment that descriptors want
constexpr uint32_t kStepBytes = 32;       // of k that one instruction takes: 16 bf16 or 32 fp8

__device__ float random_normal(uint32_t seed) {
  uint32_t bits = (seed ^ seed >> 16) * 0x7feb352du;
  bits = (bits ^ bits >> 15) * 0x846ca68bu;
  bits ^= bits >> 16;
  const float uniform = (static_cast<float>(bits >> 16) + 0.5f) * 0x1p-16f;
  const float angle = static_cast<float>(bits & 0xffffu) * 0x1p-15f;
  return sqrtf(-2.0f * __logf(uniform)) * cospif(angle);
}

template <DType kType>
__device__ void fill(uint32_t* words) {
  for (uint32_t i = threadIdx.x; i < kDataBytes / 4; i += kThreads) {
    const uint32_t seed = (blockIdx.x * kDataBytes / 4 + i) * 4;
    if constexpr (kType == DType::bf16)
      words[i] = gpu::f32x2_to_bf16x2(random_normal(seed), random_normal(seed + 1));
    else
      words[i] = gpu::f32x4_to_e4m3x4(random_normal(seed), random_normal(seed + 1), random_normal(seed + 2),
                                      random_normal(seed + 3));
  }
}

// Rows of 128 bytes, eight of them to a pattern.
__device__ uint64_t descriptor(uint32_t shared_address) {
  constexpr uint64_t kSwizzle128 = 1;
  return kSwizzle128 << 62 | uint64_t{kPatternBytes >> 4} << 32 | 1ull << 16 | (shared_address & 0x3ffffu) >> 4;
}

// The 64 x 256 sums of a group, 128 in each thread: registers of the function that declares them.
// clang-format off
#define MIXLANE_SUMS "{" \
  "acc0, acc1, acc2, acc3, acc4, acc5, acc6, acc7, acc8, acc9, acc10, acc11, acc12, acc13, acc14, " \
  "acc15, acc16, acc17, acc18, acc19, acc20, acc21, acc22, acc23, acc24, acc25, acc26, acc27, acc28, " \
  "acc29, acc30, acc31, acc32, acc33, acc34, acc35, acc36, acc37, acc38, acc39, acc40, acc41, acc42, " \
  "acc43, acc44, acc45, acc46, acc47, acc48, acc49, acc50, acc51, acc52, acc53, acc54, acc55, acc56, " \
  "acc57, acc58, acc59, acc60, acc61, acc62, acc63, acc64, acc65, acc66, acc67, acc68, acc69, acc70, " \
  "acc71, acc72, acc73, acc74, acc75, acc76, acc77, acc78, acc79, acc80, acc81, acc82, acc83, acc84, " \
  "acc85, acc86, acc87, acc88, acc89, acc90, acc91, acc92, acc93, acc94, acc95, acc96, acc97, acc98, " \
  "acc99, acc100, acc101, acc102, acc103, acc104, acc105, acc106, acc107, acc108, acc109, acc110, " \
  "acc111, acc112, acc113, acc114, acc115, acc116, acc117, acc118, acc119, acc120, acc121, acc122, " \
  "acc123, acc124, acc125, acc126, acc127" "}"
// clang-format on
#define MIXLANE_PRODUCT(types, transposed)                                                    \
  asm volatile(                                                                               \
      "{\n.reg .pred add;\nsetp.ne.b32 add, %2, 0;\n"                                         \
      "wgmma.mma_async.sync.aligned." types " " MIXLANE_SUMS ", %0, %1, add, 1, 1" transposed \
      ";\n"                                                                                   \
      "}" ::"l"(rows),                                                                        \
      "l"(columns), "r"(add))

// One step of k. `add` = 0: the sums start again.
template <DType kType>
__device__ __forceinline__ void multiply(uint64_t rows, uint64_t columns, uint32_t add) {
  if constexpr (kType == DType::bf16)
    MIXLANE_PRODUCT("m64n256k16.f32.bf16.bf16", ", 0, 0");
  else
    MIXLANE_PRODUCT("m64n256k32.f32.e4m3.e4m3", "");
}

template <DType kType>
__global__ void __launch_bounds__(kThreads, 1) doctor_tensor_cores(int num_products, float* sink) {
  extern __shared__ __align__(16) std::byte shared[];
  const auto unaligned = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const uint32_t begin = (unaligned + kPatternBytes - 1) / kPatternBytes * kPatternBytes;
  fill<kType>(reinterpret_cast<uint32_t*>(shared + (begin - unaligned)));
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();

  asm volatile(".reg .f32 acc<128>;");
  const uint64_t columns = descriptor(begin);
  const uint64_t rows = descriptor(begin + kNumSlices * (kColumnBytes + threadIdx.x / kGroupThreads * kRowBytes));
#pragma unroll 1
  for (int product = 0; product < num_products; ++product) {
#pragma unroll
    for (uint32_t slice = 0; slice < kNumSlices; ++slice) {
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (uint32_t step = 0; step < kSliceBytes / kStepBytes; ++step)
        multiply<kType>(rows + (slice * kRowBytes + step * kStepBytes >> 4),
                        columns + (slice * kColumnBytes + step * kStepBytes >> 4), slice + step);
      asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;" ::: "memory");
    }
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  float sum;
  asm volatile("mov.f32 %0, acc0;" : "=f"(sum));
  if (threadIdx.x == 0) sink[blockIdx.x] = sum;
}

}  // namespace

void launch_tensor_cores(DType dtype, int num_products, int num_multiprocessors, float* sink, Stream stream) {
  gpu::launch(dtype == DType::bf16 ? doctor_tensor_cores<DType::bf16> : doctor_tensor_cores<DType::fp8_e4m3>,
              {.variant = "doctor, tensor cores",
               .num_blocks = static_cast<uint32_t>(num_multiprocessors),
               .num_threads = kThreads,
               .shared_bytes = kDataBytes + kPatternBytes},
              stream, num_products, sink);
}

int64_t tensor_core_flops(DType dtype) {
  const int64_t depth = kNumSlices * kSliceBytes / (dtype == DType::bf16 ? 2 : 1);
  return 2 * 128 * 256 * depth;
}

}  // namespace mixlane::bench
