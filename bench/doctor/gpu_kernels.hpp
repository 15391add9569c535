// The kernels behind the peaks of GPUs. No formatting library here: nvcc stumbles over it.
#pragma once

#include <cstdint>

#include "mixlane/core.hpp"

namespace mixlane::bench {

// A kernel of one block that does nothing.
void launch_nothing(Stream stream);

// Bits without a pattern: memory and links may treat zeros better than data. Pointers and `bytes` of these four are
// multiples of kStreamBytes, and the memory may be another GPU's.
inline constexpr int64_t kStreamBytes = 32 * 1024;
void launch_fill(void* to, int64_t bytes, Stream stream);
// Loads and stores of 16 bytes by all multiprocessors.
void launch_copy(void* to, const void* from, int64_t bytes, Stream stream);
// Loads alone. `sink` is a word that is never written.
void launch_read(const void* from, int64_t bytes, uint32_t* sink, Stream stream);

// Two GPUs, each with one thread, take turns: a thread waits for `round` in its own word and answers with the next one in
// the other's. After `num_rounds` answers *elapsed_ns holds the time from the first answer to the last; it stays 0 if the
// other does not answer for `limit_ns`. Words are 0 before.
struct PingPong {
  uint32_t* own = nullptr;
  uint32_t* others = nullptr;
  uint64_t* elapsed_ns = nullptr;
  uint64_t limit_ns = 0;
  uint32_t num_rounds = 0;
  uint32_t begins = 0;  // 1 for one of the two
};
void launch_ping_pong(const PingPong& args, Stream stream);

// Nothing but tensor-core products of sm_90, one block per multiprocessor, its random-normal operands in shared memory.
// dtype is bf16 or fp8_e4m3; `sink` is a word per multiprocessor.
#if defined(MIXLANE_HIP)
inline constexpr bool kHasTensorCoreKernel = false;
#else
inline constexpr bool kHasTensorCoreKernel = true;
#endif
void launch_tensor_cores(DType dtype, int num_products, int num_multiprocessors, float* sink, Stream stream);
// Of one multiprocessor, for one of `num_products`.
int64_t tensor_core_flops(DType dtype);

}  // namespace mixlane::bench
