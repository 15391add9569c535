// How fast the machine multiplies matrices.
#pragma once

#include <string>

#include "mixlane/comm.hpp"

namespace mixlane::bench {

struct MatrixRate {
  double flops_per_second = 0;  // all ranks together
  std::string problem;          // why it is 0
};

// Collective: every rank multiplies square matrices of `dtype` (bf16 or f32) with the threads of its context.
MatrixRate matrix_rate(Communicator& comm, Context& context, DType dtype, double seconds);

}  // namespace mixlane::bench
