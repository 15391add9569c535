// Random numbers that are a pure function of (seed, stream, index): any rank can make any other rank's data, in any order.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace mixlane::bench {

// The finaliser of splitmix64: every bit of the input moves every bit of the output.
inline uint64_t mix_bits(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

inline uint64_t mix_bits(uint64_t a, uint64_t b) { return mix_bits(mix_bits(a) ^ b); }

class Stream64 {
 public:
  explicit Stream64(uint64_t seed) : state_(mix_bits(seed)) {}
  uint64_t next() { return mix_bits(state_ += 0x9e3779b97f4a7c15ull); }
  // In [0, 1), 24 bits.
  float uniform() { return static_cast<float>(next() >> 40) * 0x1p-24f; }
  // Two independent standard normal values (Box and Muller).
  void normal_pair(float& a, float& b) {
    const float radius = std::sqrt(-2.0f * std::log(1.0f - uniform()));
    const float angle = 2.0f * std::numbers::pi_v<float> * uniform();
    a = radius * std::cos(angle);
    b = radius * std::sin(angle);
  }

 private:
  uint64_t state_;
};

}  // namespace mixlane::bench
