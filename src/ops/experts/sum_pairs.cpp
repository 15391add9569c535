#include "ops/experts/sum_pairs.hpp"

#include <vector>

#include "core/parallel.hpp"
#include "ops/dispatch/cpu/row_sum.hpp"

namespace mixlane {

void sum_pairs(const Context& context, const ExpertsArgs& args, const ConstTensorView& pair_rows) {
  const PairSums pairs(args);
  const RowSumKernel sum = row_sum_kernel(DType::bf16, args.output.dtype);
  parallel_ranges(context.num_threads(), args.rows.shape[0], 1, [&](int64_t begin, int64_t end) {
    std::vector<const void*> rows(static_cast<size_t>(args.num_topk));
    std::vector<float> weights(rows.size());
    for (int64_t row = begin; row < end; ++row) {
      if (!pairs.counts(row)) continue;
      int num_rows = 0;
      for (int64_t k = 0; k < args.num_topk; ++k) {
        const int64_t slot = pairs.slot(row, k);
        if (slot < 0) continue;
        rows[num_rows] = pair_rows.as<uint16_t>() + slot * pair_rows.strides[0];
        weights[num_rows++] = pairs.weight(row, k);
      }
      sum({.rows = rows.data(),
           .weights = weights.data(),
           .num_rows = num_rows,
           .out = args.output.as<std::byte>() + size_bytes(args.output.dtype, row * args.output.strides[0]),
           .size = args.weights.hidden});
    }
  });
}

}  // namespace mixlane
