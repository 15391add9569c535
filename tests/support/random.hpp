// Seeded random data for tests.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "core/numeric.hpp"

namespace mixlane::test {

using Rng = std::mt19937_64;

inline std::vector<float> normal_f32(Rng& rng, int64_t count, float stddev = 1.0f) {
  std::normal_distribution<float> normal(0.0f, stddev);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(rng);
  return values;
}

inline std::vector<uint16_t> to_bf16(const std::vector<float>& values) {
  std::vector<uint16_t> bits(values.size());
  for (size_t i = 0; i < values.size(); ++i) bits[i] = f32_to_bf16(values[i]);
  return bits;
}

inline std::vector<uint16_t> normal_bf16(Rng& rng, int64_t count, float stddev = 1.0f) {
  return to_bf16(normal_f32(rng, count, stddev));
}

// [T, K] expert ids, distinct inside a token.
inline std::vector<int32_t> random_ids(Rng& rng, int64_t num_tokens, int num_topk, int num_experts) {
  std::vector<int32_t> ids;
  ids.reserve(static_cast<size_t>(num_tokens) * num_topk);
  std::vector<int32_t> all(num_experts);
  for (int e = 0; e < num_experts; ++e) all[e] = e;
  for (int64_t t = 0; t < num_tokens; ++t)
    for (int k = 0; k < num_topk; ++k) {
      std::uniform_int_distribution<int> pick(k, num_experts - 1);
      std::swap(all[k], all[pick(rng)]);
      ids.push_back(all[k]);
    }
  return ids;
}

}  // namespace mixlane::test
