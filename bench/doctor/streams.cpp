#include "doctor/streams.hpp"

#include <cstring>

#include "core/simd.hpp"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace mixlane::bench {

MIXLANE_CPU_LEVELS uint64_t read_all(const std::byte* from, int64_t bytes) {
  const auto* words = reinterpret_cast<const uint64_t*>(from);
  uint64_t lanes[8] = {};
  for (int64_t i = 0; i < bytes / 8; i += 8)
    for (int lane = 0; lane < 8; ++lane) lanes[lane] ^= words[i + lane];
  uint64_t all = 0;
  for (const uint64_t lane : lanes) all ^= lane;
  return all;
}

void copy_streaming(std::byte* to, const std::byte* from, int64_t bytes) {
#if defined(__SSE2__)
  auto* target = reinterpret_cast<__m128i*>(to);
  const auto* source = reinterpret_cast<const __m128i*>(from);
  for (int64_t i = 0; i < bytes / 16; i += 4) {
    const __m128i line[4] = {source[i], source[i + 1], source[i + 2], source[i + 3]};
    for (int part = 0; part < 4; ++part) _mm_stream_si128(target + i + part, line[part]);
  }
  _mm_sfence();
#else
  std::memcpy(to, from, static_cast<size_t>(bytes));
#endif
}

}  // namespace mixlane::bench
