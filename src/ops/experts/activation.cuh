// The activation between the two products, as ops/experts/activation.cpp computes it but with the hardware's exponential.
#pragma once

#include "gpu/numeric.cuh"
#include "mixlane/experts.hpp"

namespace mixlane::experts_gpu {

using gpu::at_least;
using gpu::at_most;

// The bound keeps e^-x finite, so that infinities give what they give in the limit.
__device__ inline float sigmoid(float x) {
  constexpr float kLog2E = 1.44269504f;
  return gpu::approximate_reciprocal(1.0f + gpu::approximate_exp2(at_most(-kLog2E * x, 115.0f)));
}

// `up` is not looked at by kinds without a gate.
template <ActivationKind kKind>
__device__ float activate(const Activation& how, float gate, float up) {
  if constexpr (kKind == ActivationKind::swiglu) {
    const float g = at_most(gate, how.limit);
    return g * sigmoid(g) * at_least(at_most(up, how.limit), -how.limit);
  } else if constexpr (kKind == ActivationKind::swiglu_oai) {
    const float g = at_most(gate, how.limit);
    return g * sigmoid(how.alpha * g) * (at_least(at_most(up, how.limit), -how.limit) + 1.0f);
  } else if constexpr (kKind == ActivationKind::geglu_tanh) {
    return gate * sigmoid(1.59576912f * __fmaf_rn(0.044715f * gate * gate, gate, gate)) * up;
  } else {
    const float x = at_least(gate, 0.0f);
    return x * x;
  }
}

__device__ inline float activate(const Activation& how, float gate, float up) {
  switch (how.kind) {
    case ActivationKind::swiglu: return activate<ActivationKind::swiglu>(how, gate, up);
    case ActivationKind::swiglu_oai: return activate<ActivationKind::swiglu_oai>(how, gate, up);
    case ActivationKind::geglu_tanh: return activate<ActivationKind::geglu_tanh>(how, gate, up);
    case ActivationKind::relu2: return activate<ActivationKind::relu2>(how, gate, up);
  }
  return 0.0f;
}

}  // namespace mixlane::experts_gpu
