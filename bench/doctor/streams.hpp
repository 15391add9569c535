// The loops behind the memory peaks.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mixlane::bench {

// Reads every byte; the result only keeps the compiler from leaving the loads out. `bytes` is a multiple of 64.
uint64_t read_all(const std::byte* from, int64_t bytes);

// Copies past the caches where the processor can. Both pointers and `bytes` are multiples of 64.
void copy_streaming(std::byte* to, const std::byte* from, int64_t bytes);

}  // namespace mixlane::bench
