// The activation between the two products of an expert.
#pragma once

#include <cstdint>

#include "mixlane/experts.hpp"

namespace mixlane {

// out[i] = activation(gate[i], up[i]) in f32. Ungated kinds read only `gate`. `out` may be `gate` or `up`. NaN stays NaN.
// The exponential is a polynomial with an error below 2 ulp, so that results don't depend on the C library.
void apply_activation(const Activation& activation, const float* gate, const float* up, float* out, int64_t count);

}  // namespace mixlane
