// Products with so few rows that reading the weights is all the work: each weight is read once, in its stored form.
#pragma once

#include "ops/experts/operands.hpp"

namespace mixlane {

inline constexpr int64_t kFewRows = 4;  // from there on oneDNN is as fast

// Rows of the left operand (see operands.hpp).
struct OperandRows {
  const uint16_t* values = nullptr;  // [rows, cols]
  const float* scales = nullptr;     // [rows, num_groups]
  int64_t rows = 0;
  int64_t cols = 0;
};

// Floats that few_rows_product needs as scratch, aligned to 64.
int64_t few_rows_scratch(int64_t cols);

// c[m, n - first] = product[m, n] for the matrix rows n in [first, first + count), a.rows <= kFewRows, rows of c `ldc`
// apart.
void few_rows_product(const MatrixView& matrix, int64_t first, int64_t count, const OperandRows& a, float* c, int64_t ldc,
                      float* scratch);

}  // namespace mixlane
