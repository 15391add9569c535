// A wave's counters in shared memory, by code: of 16 bits, two in a word, or of 32 bits, which cost less.
#pragma once

#include "ops/align/plan.cuh"

namespace mixlane::align_gpu {

template <class Counter>
struct Counting;

template <>
struct Counting<uint16_t> {
  __device__ static uint32_t take(uint16_t* counters, uint32_t code) {
    const uint32_t half = code % 2 * 16;
    return atomicAdd(reinterpret_cast<uint32_t*>(counters) + code / 2, 1u << half) >> half & 0xffffu;
  }
  __device__ static Quad load(const uint16_t* counters) { return unpack_quad(*reinterpret_cast<const uint2*>(counters)); }
  __device__ static void store(uint16_t* counters, const Quad& quad) {
    *reinterpret_cast<uint2*>(counters) = pack_quad(quad);
  }
};

template <>
struct Counting<uint32_t> {
  __device__ static uint32_t take(uint32_t* counters, uint32_t code) { return atomicAdd(counters + code, 1u); }
  __device__ static Quad load(const uint32_t* counters) {
    const uint4 four = *reinterpret_cast<const uint4*>(counters);
    return {{four.x, four.y, four.z, four.w}};
  }
  __device__ static void store(uint32_t* counters, const Quad& quad) {
    *reinterpret_cast<uint4*>(counters) = make_uint4(quad.of[0], quad.of[1], quad.of[2], quad.of[3]);
  }
};

// What the counters of this lane's codes held before.
struct TakesByAtomics {
  template <class Wave, class Counter, int kCount>
  __device__ static void take(Counter* counters, const uint32_t (&codes)[kCount], uint32_t (&positions)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) positions[i] = Counting<Counter>::take(counters, codes[i]);
  }
};

}  // namespace mixlane::align_gpu
