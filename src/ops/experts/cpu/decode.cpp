#include "ops/experts/cpu/decode.hpp"

#include "core/simd.hpp"
#include "ops/experts/cpu/lanes.hpp"

namespace mixlane {
namespace {

// Two vectors of values that bf16 holds, as words of two bf16: little endian, so the even value comes first.
[[gnu::always_inline]] inline void pack(const F32x16& even, const F32x16& odd, U32x16& words) {
  words = reinterpret_cast<U32x16>(even) >> 16 | (reinterpret_cast<U32x16>(odd) & 0xffff0000u);
}

// low = a0 b0 a1 b1 ..., high = a8 b8 ...
[[gnu::always_inline]] inline void interleave(const U32x16& a, const U32x16& b, U32x16& low, U32x16& high) {
  low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

[[gnu::always_inline]] inline void store_values(const U32x16* words, int64_t count, uint16_t* out) {
  std::memcpy(out, words, static_cast<size_t>(count) * 2);
}

}  // namespace

MIXLANE_CPU_LEVELS void decode_e4m3(const uint8_t* in, uint16_t* out, int64_t count) {
  constexpr int64_t kStep = E4m3Decoder::kStep;
  for (int64_t i = 0; i < count; i += kStep) {
    const int64_t step = std::min(kStep, count - i);
    U32x16 words, pairs[2], ordered[2];
    load_words(in + i, step, words);
    F32x16 values[4];
    for (int v = 0; v < 4; ++v) E4m3Decoder::decode(words, v, values[v]);
    for (int p = 0; p < 2; ++p) pack(values[2 * p], values[2 * p + 1], pairs[p]);
    interleave(pairs[0], pairs[1], ordered[0], ordered[1]);
    if (step == kStep)
      store_values(ordered, kStep, out + i);
    else
      store_values(ordered, step, out + i);
  }
}

MIXLANE_CPU_LEVELS void decode_mxfp4(const uint8_t* in, const uint8_t* scales, uint16_t* out, int64_t count) {
  constexpr int64_t kStep = E2m1Decoder::kStep;
  for (int64_t i = 0; i < count; i += kStep) {
    const int64_t step = std::min(kStep, count - i);
    U32x16 words, pairs[4], halves[4], ordered[4];
    F32x16 factors, values[8];
    load_words(in + i / 2, step / 2, words);
    E2m1Decoder::load_factors(scales + i / 32, (step + 31) / 32, factors);
    for (int v = 0; v < 8; ++v) {
      E2m1Decoder::decode(words, v, values[v]);
      values[v] *= factors;
    }
    for (int p = 0; p < 4; ++p) pack(values[2 * p], values[2 * p + 1], pairs[p]);
    // Word 4 d + p of the result is word d of pairs[p].
    interleave(pairs[0], pairs[2], halves[0], halves[1]);
    interleave(pairs[1], pairs[3], halves[2], halves[3]);
    interleave(halves[0], halves[2], ordered[0], ordered[1]);
    interleave(halves[1], halves[3], ordered[2], ordered[3]);
    if (step == kStep)
      store_values(ordered, kStep, out + i);
    else
      store_values(ordered, step, out + i);
  }
}

}  // namespace mixlane
