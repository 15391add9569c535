#include "ops/experts/activation.hpp"

#include <array>
#include <bit>
#include <string>

#include "core/error.hpp"
#include "core/simd.hpp"

namespace mixlane {
namespace {

constexpr std::array<std::string_view, 4> kNames{"swiglu", "swiglu_oai", "geglu_tanh", "relu2"};

// Comparisons are written so that a NaN in x survives them.
[[gnu::always_inline]] inline float at_most(float x, float high) { return high < x ? high : x; }
[[gnu::always_inline]] inline float at_least(float x, float low) { return x < low ? low : x; }

// e^x for x in [-87, 88], clamped to that: 2^n * e^r with |r| <= ln(2) / 2.
[[gnu::always_inline]] inline float exponential(float x) {
  x = at_least(at_most(x, 88.0f), -87.0f);
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  // ln 2 in two parts, the first with few enough bits that n times it is exact.
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const uint32_t exponent = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound) + 127u;
  return p * std::bit_cast<float>(exponent << 23);
}

[[gnu::always_inline]] inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

MIXLANE_CPU_LEVELS void swiglu(float limit, const float* gate, const float* up, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float g = at_most(gate[i], limit);
    const float u = at_least(at_most(up[i], limit), -limit);
    out[i] = g * sigmoid(g) * u;
  }
}

MIXLANE_CPU_LEVELS void swiglu_oai(float limit, float alpha, const float* gate, const float* up, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float g = at_most(gate[i], limit);
    const float u = at_least(at_most(up[i], limit), -limit);
    out[i] = g * sigmoid(alpha * g) * (u + 1.0f);
  }
}

// 0.5 x (1 + tanh(y)) = x sigmoid(2 y).
MIXLANE_CPU_LEVELS void geglu_tanh(const float* gate, const float* up, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float x = gate[i];
    out[i] = x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x)) * up[i];
  }
}

MIXLANE_CPU_LEVELS void relu2(const float* in, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float x = at_least(in[i], 0.0f);
    out[i] = x * x;
  }
}

}  // namespace

std::string_view name(ActivationKind kind) { return kNames.at(static_cast<size_t>(kind)); }

ActivationKind activation_from_name(std::string_view text) {
  for (size_t i = 0; i < kNames.size(); ++i)
    if (kNames[i] == text) return static_cast<ActivationKind>(i);
  fail(ErrorCode::invalid_argument, "unknown activation '{}'; valid ones: {}", text, fmt::join(kNames, ", "));
}

void apply_activation(const Activation& activation, const float* gate, const float* up, float* out, int64_t count) {
  switch (activation.kind) {
    case ActivationKind::swiglu: return swiglu(activation.limit, gate, up, out, count);
    case ActivationKind::swiglu_oai: return swiglu_oai(activation.limit, activation.alpha, gate, up, out, count);
    case ActivationKind::geglu_tanh: return geglu_tanh(gate, up, out, count);
    case ActivationKind::relu2: return relu2(gate, out, count);
  }
}

}  // namespace mixlane
