// out = sum of weighted rows (+ addend), in registers and rounded once: the arithmetic of combine.
#pragma once

#include "mixlane/core.hpp"

namespace mixlane {

struct RowSum {
  const void* const* rows = nullptr;
  const float* weights = nullptr;  // one per row; nullptr: all 1
  int num_rows = 0;                // 0 gives the addend alone, or zeros
  const void* addend = nullptr;    // optional
  DType addend_dtype = DType::f32;
  void* out = nullptr;
  int64_t size = 0;  // values per row
};

// The rows are added one after the other, starting from +0, in f64 if rows or output are f64, else in f32.
using RowSumKernel = void (*)(const RowSum&);

// row: bf16, f32 or f64; out: bf16, f32 or f64. Throws internal for f64 to f64.
RowSumKernel row_sum_kernel(DType row, DType out);

}  // namespace mixlane
