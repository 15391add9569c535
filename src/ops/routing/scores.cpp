#include "ops/routing/scores.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/numeric.hpp"

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

// at(i) for i in [0, count) -> out[i].
template <class At>
void softmax(int count, At at, float* out) {
  float max = at(0);
  for (int i = 1; i < count; ++i) max = std::max(max, at(i));
  double exponentials[2048];  // 1024 real and 1024 zero experts
  double sum = 0.0;
  for (int i = 0; i < count; ++i) sum += exponentials[i] = std::exp(static_cast<double>(at(i)) - max);
  const double inverse = 1.0 / sum;
  for (int i = 0; i < count; ++i) out[i] = static_cast<float>(exponentials[i] * inverse);
}

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }

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
  switch (scoring) {
    case Scoring::softmax:
      softmax(
          count, [&](int i) { return x[i]; }, scores);
      break;
    case Scoring::topk_softmax: std::copy_n(x, count, scores); break;
    case Scoring::sigmoid:
      for (int e = 0; e < count; ++e) scores[e] = static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(x[e]))));
      break;
    case Scoring::sqrt_softplus:
      for (int e = 0; e < count; ++e) scores[e] = static_cast<float>(std::sqrt(softplus(x[e])));
      break;
  }
}

void softmax_of(const float* x, const int* ids, int count, float* weights) {
  softmax(
      count, [&](int i) { return x[ids[i]]; }, weights);
}

}  // namespace mixlane::routing
