// Partial sums on CombineWire::fp8_1x128: codes, then a scale per 128 values.
#pragma once

#include "ops/dispatch/cpu/row_sum.hpp"
#include "ops/dispatch/layout.hpp"

namespace mixlane {

// The sum of rows of dtype `row`, rounded to e4m3, to sum.out, which is laid out as `layout` says.
void sum_to_fp8(const RowSum& sum, DType row, const WindowLayout& layout);
// The sum of such rows to sum.out of dtype `out`.
void sum_of_fp8(const RowSum& sum, DType out, const WindowLayout& layout);

}  // namespace mixlane
