#include "ops/routing/scores.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/numeric.hpp"
#include "core/score_math.hpp"
#include "core/simd.hpp"

namespace mixlane::routing {
namespace {

constexpr float kNanLogit = -1e30f;
constexpr float kMaxLogit = std::numeric_limits<float>::max();

void decode(const void* logits, DType dtype, int count, float* x) {
  const auto* f32 = static_cast<const float*>(logits);
  const auto* half = static_cast<const uint16_t*>(logits);
  if (dtype == DType::f32) std::copy_n(f32, count, x);
  if (dtype == DType::bf16)
    for (int e = 0; e < count; ++e) x[e] = bf16_to_f32(half[e]);
  if (dtype == DType::f16)
    for (int e = 0; e < count; ++e) x[e] = f16_to_f32(half[e]);
}

// The softmax over x[0 .. count), in place.
MIXLANE_CPU_LEVELS void softmax(float* x, int count) {
  float max = x[0];
  for (int i = 1; i < count; ++i) max = std::max(max, x[i]);
  for (int i = 0; i < count; ++i) x[i] = exp_below(x[i], max);
  double sum = 0.0;
  for (int i = 0; i < count; ++i) sum += x[i];
  const float inverse = 1.0f / static_cast<float>(sum);
  for (int i = 0; i < count; ++i) x[i] *= inverse;
}

MIXLANE_CPU_LEVELS void sigmoid(float* x, int count) {
  for (int i = 0; i < count; ++i) x[i] = sigmoid_f32(x[i]);
}

MIXLANE_CPU_LEVELS void sqrt_softplus(float* x, int count) {
  for (int i = 0; i < count; ++i) x[i] = std::sqrt(softplus_f32(x[i]));
}

}  // namespace

bool load_logits(const void* logits, DType dtype, int count, float softcap, float* x) {
  decode(logits, dtype, count, x);
  bool has_nan = false;
  for (int e = 0; e < count; ++e) {
    const bool nan = std::isnan(x[e]);
    has_nan |= nan;
    const float number = nan ? kNanLogit : std::clamp(x[e], -kMaxLogit, kMaxLogit);
    x[e] = number + 0.0f;  // -0 + +0 = +0
  }
  if (softcap > 0.0f)
    for (int e = 0; e < count; ++e) x[e] = static_cast<float>(softcap * std::tanh(static_cast<double>(x[e]) / softcap));
  return has_nan;
}

void score(Scoring scoring, const float* x, int count, float* scores) {
  std::copy_n(x, count, scores);
  switch (scoring) {
    case Scoring::softmax: return softmax(scores, count);
    case Scoring::topk_softmax: return;
    case Scoring::sigmoid: return sigmoid(scores, count);
    case Scoring::sqrt_softplus: return sqrt_softplus(scores, count);
  }
}

void softmax_of(const float* x, const int* ids, int count, float* weights) {
  for (int i = 0; i < count; ++i) weights[i] = x[ids[i]];
  softmax(weights, count);
}

}  // namespace mixlane::routing
