// The device vocabulary that kernels are written in, the same for CUDA and HIP. Vendor differences end here.
#pragma once

#include <cstdint>
#include <type_traits>

#if defined(MIXLANE_HIP)
#include <hip/hip_runtime.h>
#else
#include <cuda_runtime.h>
#endif

// Marks a kernel's parameter that is read in place, not copied to each thread.
#if defined(MIXLANE_HIP)
#define MIXLANE_GRID_CONSTANT
#else
#define MIXLANE_GRID_CONSTANT __grid_constant__
#endif

namespace mixlane::gpu {

#if defined(MIXLANE_HIP)
inline constexpr int kHardwareWave = 64;
#else
inline constexpr int kHardwareWave = 32;
#endif

// Whether the lanes of an atomic on shared memory are seen to take their turns in ascending order. No manual promises
// that, so nothing may be wrong without it: who hopes for it checks the outcome and knows another way.
#if defined(MIXLANE_HIP)
inline constexpr bool kAtomicsInLaneOrder = false;
#else
inline constexpr bool kAtomicsInLaneOrder = true;
#endif

// ---------------------------------------------------------------------------------------------------------------------
// Waves

// A wave of kSize consecutive threads: the hardware's, or an equal part of it. All threads of the hardware's wave take
// part in every call. Lanes, masks and shuffles count inside the logical wave.
template <int kSize>
struct Wave {
  static_assert(kSize <= kHardwareWave && kHardwareWave % kSize == 0);
  using Mask = std::conditional_t<(kSize > 32), uint64_t, uint32_t>;
  static constexpr Mask kAll = static_cast<Mask>(~Mask{0}) >> (sizeof(Mask) * 8 - kSize);

  __device__ static uint32_t lane() { return threadIdx.x % kSize; }
  __device__ static uint32_t index_in_block() { return threadIdx.x / kSize; }
  __device__ static Mask lanes_below() { return (Mask{1} << lane()) - 1; }
  __device__ static int count(Mask mask) { return sizeof(Mask) == 8 ? __popcll(mask) : __popc(static_cast<uint32_t>(mask)); }

  // Orders shared-memory accesses among the wave's threads.
  __device__ static void sync() {
#if defined(MIXLANE_HIP)
    __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "wavefront");
    __builtin_amdgcn_wave_barrier();
#else
    __syncwarp();
#endif
  }

  __device__ static Mask ballot(bool predicate) {
#if defined(MIXLANE_HIP)
    const uint64_t all = __ballot(predicate);
#else
    const uint32_t all = __ballot_sync(~0u, predicate);
#endif
    if constexpr (kSize == kHardwareWave) {
      return static_cast<Mask>(all);
    } else {
      return static_cast<Mask>(all >> (threadIdx.x % kHardwareWave / kSize * kSize)) & kAll;
    }
  }

  template <class T>
  __device__ static T shuffle(T value, int source) {
#if defined(MIXLANE_HIP)
    return __shfl(value, source, kSize);
#else
    return __shfl_sync(~0u, value, source, kSize);
#endif
  }

  template <class T>
  __device__ static T shuffle_up(T value, int distance) {
#if defined(MIXLANE_HIP)
    return __shfl_up(value, distance, kSize);
#else
    return __shfl_up_sync(~0u, value, distance, kSize);
#endif
  }

  template <class T>
  __device__ static T inclusive_sum(T value) {
#pragma unroll
    for (int distance = 1; distance < kSize; distance *= 2) {
      const T below = shuffle_up(value, distance);
      if (lane() >= static_cast<uint32_t>(distance)) value += below;
    }
    return value;
  }

  // Several at once, so that they hide each other's latency.
  template <class T, int kCount>
  __device__ static void inclusive_sums(const T (&values)[kCount], T (&sums)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[i] = values[i];
#pragma unroll
    for (int distance = 1; distance < kSize; distance *= 2) {
      T below[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) below[i] = shuffle_up(sums[i], distance);
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        if (lane() >= static_cast<uint32_t>(distance)) sums[i] += below[i];
    }
  }

  // Lanes whose values have the same lowest kBits bits: as long for any values.
  template <int kBits>
  __device__ static Mask match_by_ballots(uint32_t value) {
    Mask peers = kAll;
#pragma unroll
    for (int bit = 0; bit < kBits; ++bit) {
      const bool set = (value >> bit & 1u) != 0;
      const Mask having = ballot(set);
      peers &= set ? having : ~having;
    }
    return peers;
  }

  // The same, where there is one by an instruction that takes a step per distinct value (and looks at all bits).
  template <int kBits>
  __device__ static Mask match_any(uint32_t value) {
#if defined(MIXLANE_HIP)
    return match_by_ballots<kBits>(value);
#else
    const uint32_t peers = __match_any_sync(~0u, value);
    if constexpr (kSize == kHardwareWave) return peers;
    return static_cast<Mask>(peers >> (threadIdx.x % kHardwareWave / kSize * kSize)) & kAll;
#endif
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// Global memory: 16-byte packets and cache hints

struct alignas(16) Packet {
  uint32_t words[4];
};

// Read once: does not displace what others reuse.
template <class T>
__device__ T load_streaming(const T* from) {
#if defined(MIXLANE_HIP)
  return __builtin_nontemporal_load(from);
#else
  return __ldcs(from);
#endif
}

// The same of 16 aligned bytes.
__device__ inline Packet load_streaming_packet(const void* from) {
#if defined(MIXLANE_HIP)
  using Vector = uint32_t __attribute__((ext_vector_type(4)));
  const Vector vector = __builtin_nontemporal_load(static_cast<const Vector*>(from));
  return {{vector.x, vector.y, vector.z, vector.w}};
#else
  const uint4 vector = __ldcs(static_cast<const uint4*>(from));
  return {{vector.x, vector.y, vector.z, vector.w}};
#endif
}

template <class T>
__device__ void store_streaming(T* to, T value) {
#if defined(MIXLANE_HIP)
  __builtin_nontemporal_store(value, to);
#else
  __stcs(to, value);
#endif
}

__device__ inline void store_packet(void* to, const Packet& packet) {
  *reinterpret_cast<uint4*>(to) = make_uint4(packet.words[0], packet.words[1], packet.words[2], packet.words[3]);
}

// Adds to a word of shared memory and returns what it held; without `active` nothing happens and 0 is returned. There is
// no branch, so that a thread has many on their way.
__device__ inline uint32_t add_shared_if(bool active, uint32_t* at, uint32_t value) {
#if defined(MIXLANE_HIP)
  return active ? atomicAdd(at, value) : 0;
#else
  uint32_t before = 0;
  asm volatile(
      "{\n"
      ".reg .pred active;\n"
      "setp.ne.u32 active, %3, 0;\n"
      "@active atom.shared.add.u32 %0, [%1], %2;\n"
      "}"
      : "+r"(before)
      : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(at))), "r"(value), "r"(static_cast<uint32_t>(active))
      : "memory");
  return before;
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Ordered operations

enum class Scope { device, system };

#if defined(MIXLANE_HIP)
template <Scope kScope>
inline constexpr int kHipScope = kScope == Scope::device ? __HIP_MEMORY_SCOPE_AGENT : __HIP_MEMORY_SCOPE_SYSTEM;

template <Scope kScope>
__device__ uint32_t load_acquire(const uint32_t* from) {
  return __hip_atomic_load(from, __ATOMIC_ACQUIRE, kHipScope<kScope>);
}
template <Scope kScope>
__device__ uint32_t load_relaxed(const uint32_t* from) {
  return __hip_atomic_load(from, __ATOMIC_RELAXED, kHipScope<kScope>);
}
template <Scope kScope>
__device__ void store_release(uint32_t* to, uint32_t value) {
  __hip_atomic_store(to, value, __ATOMIC_RELEASE, kHipScope<kScope>);
}
template <Scope kScope>
__device__ void store_relaxed(uint32_t* to, uint32_t value) {
  __hip_atomic_store(to, value, __ATOMIC_RELAXED, kHipScope<kScope>);
}
template <Scope kScope>
__device__ uint32_t fetch_add_release(uint32_t* at, uint32_t value) {
  return __hip_atomic_fetch_add(at, value, __ATOMIC_RELEASE, kHipScope<kScope>);
}
#else
template <Scope kScope>
__device__ uint32_t load_acquire(const uint32_t* from) {
  uint32_t value;
  if constexpr (kScope == Scope::device)
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  else
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
template <Scope kScope>
__device__ uint32_t load_relaxed(const uint32_t* from) {
  uint32_t value;
  if constexpr (kScope == Scope::device)
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  else
    asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
template <Scope kScope>
__device__ void store_release(uint32_t* to, uint32_t value) {
  if constexpr (kScope == Scope::device)
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
  else
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
template <Scope kScope>
__device__ void store_relaxed(uint32_t* to, uint32_t value) {
  if constexpr (kScope == Scope::device)
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
  else
    asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
template <Scope kScope>
__device__ uint32_t fetch_add_release(uint32_t* at, uint32_t value) {
  uint32_t before;
  if constexpr (kScope == Scope::device)
    asm volatile("atom.add.release.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(at), "r"(value) : "memory");
  else
    asm volatile("atom.add.release.sys.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(at), "r"(value) : "memory");
  return before;
}
#endif

// All blocks of a cooperative launch meet. `state` is a word whose lower 31 bits are zero between barriers: block 0 adds
// what makes the last arrival flip the top bit, so nothing is ever reset. Release and acquire are cumulative: with the
// block's own barriers they cover what its other threads wrote and read.
inline constexpr uint32_t kBarrierTop = 0x80000000u;

// By one thread of each block: the block has arrived. What it returns is for the block's wait.
__device__ inline uint32_t arrive_at_grid_barrier(uint32_t* state) {
  return fetch_add_release<Scope::device>(state, blockIdx.x == 0 ? kBarrierTop - (gridDim.x - 1) : 1u);
}
// By one thread: until all blocks have arrived.
__device__ inline void wait_at_grid_barrier(uint32_t* state, uint32_t arrived) {
  while (((arrived ^ load_acquire<Scope::device>(state)) & kBarrierTop) == 0) {
  }
}
// By all threads.
__device__ inline void grid_barrier(uint32_t* state) {
  __syncthreads();
  if (threadIdx.x == 0) wait_at_grid_barrier(state, arrive_at_grid_barrier(state));
  __syncthreads();
}

// Nanoseconds of a clock that all blocks share.
__device__ inline uint64_t clock_ns() {
#if defined(MIXLANE_HIP)
  return __builtin_amdgcn_s_memrealtime() * 10;  // 100 MHz
#else
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
#endif
}

// ---------------------------------------------------------------------------------------------------------------------
// Overlap with the previous and next kernel of the stream (programmatic dependent launch); nothing where there is none

// Before the first access to memory that a predecessor may touch.
__device__ inline void wait_for_previous_kernel() {
#if !defined(MIXLANE_HIP) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Kernel parameters come through a cache of constants that is cold at the start: one miss after the other where they are
// first used. Here the block's first waves fetch all lines at once, before anything has to be waited for.
template <class Args>
__device__ void prefetch_args([[maybe_unused]] const Args& args) {
#if !defined(MIXLANE_HIP)
  constexpr uint32_t kLineWords = 16;
  constexpr uint32_t kWords = sizeof(Args) / 4;
  const auto* words = reinterpret_cast<const uint32_t*>(&args);
  uint32_t any = 0;
  for (uint32_t word = threadIdx.x / kHardwareWave * kLineWords; word < kWords;
       word += blockDim.x / kHardwareWave * kLineWords)
    any |= words[word];
  // A use that no compiler can prove to be of no use.
  asm volatile(
      "{\n"
      ".reg .pred rare;\n"
      "setp.eq.u32 rare, %0, 0x9e3779b9;\n"
      "@rare nanosleep.u32 1;\n"
      "}" ::"r"(any));
#endif
}

// From here on the next kernel may start its own prologue; its wait still covers everything this kernel does.
__device__ inline void allow_next_kernel() {
#if !defined(MIXLANE_HIP) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace mixlane::gpu
