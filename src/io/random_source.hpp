// Normal random numbers that are a function of a key and a position: the same whoever makes them, in any order.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "core/numeric.hpp"

namespace mixlane {

// A bijection that spreads every bit (the finaliser of splitmix64).
inline uint64_t mix_bits(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// A stream's key: different for different (seed, expert, tensor).
inline uint64_t stream_key(uint64_t seed, int64_t expert, int tensor) {
  return mix_bits(mix_bits(mix_bits(seed + 0x9e3779b97f4a7c15u) ^ static_cast<uint64_t>(expert)) +
                  static_cast<uint64_t>(tensor));
}

// Quantiles of the standard normal distribution at (i + 0.5) / 65536: a random 16-bit index gives a normal value.
class NormalTable {
 public:
  static constexpr int kSize = 1 << 16;

  NormalTable() : quantiles_(kSize) {
    double x = 0;
    for (int i = kSize / 2 - 1; i >= 0; --i) {
      // The upper tail holds (i + 0.5) / kSize: Newton from the last, smaller quantile, on a convex, falling function.
      const double tail = (i + 0.5) / kSize;
      for (int step = 0; step < 5; ++step)
        x += (0.5 * std::erfc(x * std::sqrt(0.5)) - tail) * std::sqrt(2 * M_PI) * std::exp(0.5 * x * x);
      quantiles_[i] = static_cast<float>(-x);
      quantiles_[kSize - 1 - i] = static_cast<float>(x);
    }
  }

  // Normal with standard deviation `stddev`, as bf16 bits.
  std::vector<uint16_t> bf16(float stddev) const {
    std::vector<uint16_t> table(kSize);
    for (int i = 0; i < kSize; ++i) table[i] = f32_to_bf16(quantiles_[i] * stddev);
    return table;
  }
  float operator[](uint16_t index) const { return quantiles_[index]; }

 private:
  std::vector<float> quantiles_;
};

// The index at `position` of a stream: 16 bits of a hash that four positions share.
inline uint16_t random_index(uint64_t key, int64_t position) {
  return static_cast<uint16_t>(mix_bits(key + static_cast<uint64_t>(position / 4)) >> (position % 4 * 16));
}

// out[i] = table[random_index(key, first + i)]; `first` is a multiple of 4.
inline void fill_random(const std::vector<uint16_t>& table, uint64_t key, int64_t first, uint16_t* out, int64_t count) {
  const uint16_t* values = table.data();
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const uint64_t bits = mix_bits(key + static_cast<uint64_t>((first + i) / 4));
    for (int lane = 0; lane < 4; ++lane) out[i + lane] = values[static_cast<uint16_t>(bits >> (16 * lane))];
  }
  for (; i < count; ++i) out[i] = values[random_index(key, first + i)];
}

}  // namespace mixlane
