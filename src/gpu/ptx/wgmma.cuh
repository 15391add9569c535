// Matrix products of a warpgroup on sm_90: D[64, N] += A[64, 32 bytes of k] * B[N, 32 bytes of k], both row major in k.
//
// D: thread t holds rows 16 (t / 32) + t % 32 / 4 + {0, 8} and of them columns 8 j + 2 (t % 4) + {0, 1}:
//   d[4 j + {0, 1}] of the first row, d[4 j + {2, 3}] of the second.
#pragma once

#include "gpu/ptx/mbarrier.cuh"

namespace mixlane::gpu::ptx {

// Order register accesses before the next product; the products issued so far as a group; all but the newest groups done.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Rows of 128 bytes, their 16-byte packets swapped by the copy engine's 128-byte swizzle: packet c of row r lies at
// c ^ r % 8. `address` is 1024-byte aligned plus a multiple of 32 below 128.
__device__ inline uint64_t swizzled_rows(uint32_t address) {
  constexpr uint64_t kEightRows = 1024 >> 4;
  return (address >> 4 & 0x3fffu) | uint64_t{1} << 16 | kEightRows << 32 | uint64_t{1} << 62;
}
// What to add to go 32 bytes on in k, or a number of rows (a multiple of 8) down.
inline constexpr uint64_t kDescriptorStep = 32 >> 4;
__device__ constexpr uint64_t descriptor_rows(int rows) { return static_cast<uint64_t>(rows) * 128 >> 4; }

enum class MatrixType { bf16, e4m3 };

// `add` false: D is written, not added to. mma_e4m3 takes A from registers, which must stay as they are until the product is
// done: lane l of warp w holds of rows 16 w + l / 4 (a[0], a[2]) and 8 further (a[1], a[3]) four values of k each, from
// 4 (l % 4) on and, a[2] and a[3], 16 further.
template <int kN>
struct Wgmma;

#define MIXLANE_D4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define MIXLANE_D8(i) MIXLANE_D4(i), MIXLANE_D4((i) + 4)
#define MIXLANE_D16(i) MIXLANE_D8(i), MIXLANE_D8((i) + 8)
#define MIXLANE_D32(i) MIXLANE_D16(i), MIXLANE_D16((i) + 16)
#define MIXLANE_R4 "%0, %1, %2, %3"
#define MIXLANE_R8 MIXLANE_R4 ", %4, %5, %6, %7"
#define MIXLANE_R12 MIXLANE_R8 ", %8, %9, %10, %11"
#define MIXLANE_R16 MIXLANE_R12 ", %12, %13, %14, %15"
#define MIXLANE_R24 MIXLANE_R16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define MIXLANE_R32 MIXLANE_R24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define MIXLANE_R36 MIXLANE_R32 ", %32, %33, %34, %35"
#define MIXLANE_R40 MIXLANE_R36 ", %36, %37, %38, %39"
#define MIXLANE_R48 MIXLANE_R40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define MIXLANE_R64 MIXLANE_R48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MIXLANE_R72 MIXLANE_R64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define MIXLANE_R80 MIXLANE_R72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define MIXLANE_R96 MIXLANE_R80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define MIXLANE_R112 \
  MIXLANE_R96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define MIXLANE_R128 \
  MIXLANE_R112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// kRegisters: the numbers of D's operands; n0 to n5: the numbers of those that follow.
#define MIXLANE_WGMMA(n, kRegisters, n0, n1, n2, n3, n4, n5, ...)                                                    \
  template <>                                                                                                        \
  struct Wgmma<n> {                                                                                                  \
    template <MatrixType kType, int kSize>                                                                           \
    __device__ static void mma(float (&d)[kSize], uint64_t a_rows, uint64_t b_rows, bool add) {                      \
      if constexpr (kType == MatrixType::bf16) {                                                                     \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " n2                                                          \
                     ", 0;\n"                                                                                        \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" kRegisters "}, " n0 ", " n1        \
                     ", p, 1, 1, 0, 0;\n}"                                                                           \
                     : __VA_ARGS__                                                                                   \
                     : "l"(a_rows), "l"(b_rows), "r"(static_cast<int32_t>(add)));                                    \
      } else {                                                                                                       \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " n2                                                          \
                     ", 0;\n"                                                                                        \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k32.f32.e4m3.e4m3 {" kRegisters "}, " n0 ", " n1        \
                     ", p, 1, 1;\n}"                                                                                 \
                     : __VA_ARGS__                                                                                   \
                     : "l"(a_rows), "l"(b_rows), "r"(static_cast<int32_t>(add)));                                    \
      }                                                                                                              \
    }                                                                                                                \
    template <int kSize>                                                                                             \
    __device__ static void mma_e4m3(float (&d)[kSize], const uint32_t (&a)[4], uint64_t b_rows, bool add) {          \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " n5                                                            \
                   ", 0;\n"                                                                                          \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k32.f32.e4m3.e4m3 {" kRegisters "}, {" n0 ", " n1 ", " n2 \
                   ", " n3 "}, " n4 ", p, 1, 1;\n}"                                                                  \
                   : __VA_ARGS__                                                                                     \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_rows), "r"(static_cast<int32_t>(add)));       \
    }                                                                                                                \
  };
MIXLANE_WGMMA(8, MIXLANE_R4, "%4", "%5", "%6", "%7", "%8", "%9", MIXLANE_D4(0))
MIXLANE_WGMMA(16, MIXLANE_R8, "%8", "%9", "%10", "%11", "%12", "%13", MIXLANE_D8(0))
MIXLANE_WGMMA(24, MIXLANE_R12, "%12", "%13", "%14", "%15", "%16", "%17", MIXLANE_D8(0), MIXLANE_D4(8))
MIXLANE_WGMMA(32, MIXLANE_R16, "%16", "%17", "%18", "%19", "%20", "%21", MIXLANE_D16(0))
MIXLANE_WGMMA(48, MIXLANE_R24, "%24", "%25", "%26", "%27", "%28", "%29", MIXLANE_D16(0), MIXLANE_D8(16))
MIXLANE_WGMMA(64, MIXLANE_R32, "%32", "%33", "%34", "%35", "%36", "%37", MIXLANE_D32(0))
MIXLANE_WGMMA(72, MIXLANE_R36, "%36", "%37", "%38", "%39", "%40", "%41", MIXLANE_D32(0), MIXLANE_D4(32))
MIXLANE_WGMMA(80, MIXLANE_R40, "%40", "%41", "%42", "%43", "%44", "%45", MIXLANE_D32(0), MIXLANE_D8(32))
MIXLANE_WGMMA(96, MIXLANE_R48, "%48", "%49", "%50", "%51", "%52", "%53", MIXLANE_D32(0), MIXLANE_D16(32))
MIXLANE_WGMMA(128, MIXLANE_R64, "%64", "%65", "%66", "%67", "%68", "%69", MIXLANE_D32(0), MIXLANE_D32(32))
MIXLANE_WGMMA(144, MIXLANE_R72, "%72", "%73", "%74", "%75", "%76", "%77", MIXLANE_D32(0), MIXLANE_D32(32), MIXLANE_D8(64))
MIXLANE_WGMMA(160, MIXLANE_R80, "%80", "%81", "%82", "%83", "%84", "%85", MIXLANE_D32(0), MIXLANE_D32(32), MIXLANE_D16(64))
MIXLANE_WGMMA(256, MIXLANE_R128, "%128", "%129", "%130", "%131", "%132", "%133", MIXLANE_D32(0), MIXLANE_D32(32),
              MIXLANE_D32(64), MIXLANE_D32(96))

#undef MIXLANE_WGMMA
#undef MIXLANE_R4
#undef MIXLANE_R8
#undef MIXLANE_R12
#undef MIXLANE_R16
#undef MIXLANE_R24
#undef MIXLANE_R32
#undef MIXLANE_R36
#undef MIXLANE_R40
#undef MIXLANE_R48
#undef MIXLANE_R64
#undef MIXLANE_R72
#undef MIXLANE_R80
#undef MIXLANE_R96
#undef MIXLANE_R112
#undef MIXLANE_R128
#undef MIXLANE_D4
#undef MIXLANE_D8
#undef MIXLANE_D16
#undef MIXLANE_D32

}  // namespace mixlane::gpu::ptx
