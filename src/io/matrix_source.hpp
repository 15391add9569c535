// A weight matrix as a checkpoint holds it, and its way into memory.
#pragma once

#include "io/checkpoint.hpp"
#include "io/expert_storage.hpp"

namespace mixlane {

enum class SourceFormat : uint8_t {
  plain,      // BF16, F16 or F32
  fp8_block,  // F8_E4M3 and one F32 per 128x128 block
  mxfp4,      // e2m1 pairs and one e8m0 per 32 values of a row
};

// Every `step`-th row of a tensor, `count` of them from byte `offset` on.
struct RowRun {
  CheckpointTensor tensor;
  int64_t offset = 0;
  int64_t row_bytes = 0;
  int64_t step = 1;
  int64_t count = 0;

  int64_t bytes() const { return count * row_bytes; }
  int64_t span_bytes() const { return count == 0 ? 0 : ((count - 1) * step + 1) * row_bytes; }
};

// Consecutive rows of a matrix: the gate rows, the up rows, or all of them.
struct Slab {
  SourceFormat format = SourceFormat::plain;
  RowRun values;  // a row of the run is a row of the matrix
  RowRun scales;  // fp8_block: a row of blocks; mxfp4: a row; plain: none
  int64_t num_rows() const { return values.count; }
};

// One expert's matrix, its slabs in the order of the rows.
struct MatrixSource {
  int64_t cols = 0;
  std::vector<Slab> slabs;
  int64_t num_rows() const;
};

// A separate tensor [rows, cols], with `<name>_scale_inv` beside it if it is fp8. Throws unless its shape is that.
Slab separate_slab(Checkpoint& checkpoint, const std::string& name, int64_t rows, int64_t cols);

// Rows first_row, first_row + step, ... of expert `expert` of `<name>_blocks` [num_experts, num_tensor_rows, cols / 32, 16]
// and `<name>_scales`.
struct StackedShape {
  int64_t num_experts = 0;
  int64_t rows = 0;
  int64_t cols = 0;
};
Slab stacked_slab(Checkpoint& checkpoint, const std::string& name, const StackedShape& shape, int64_t expert,
                  int64_t first_row, int64_t step);

// Throws invalid_argument naming the tensor, its shape and the expected one.
void require_shape(const CheckpointTensor& tensor, std::initializer_list<int64_t> expected);

// Fills expert i of `into` from sources[i]: byte for byte where the formats agree, else through f32. Maps only the
// sources' ranges, and those only for a while.
void load_matrices(Context& context, Checkpoint& checkpoint, const std::vector<MatrixSource>& sources, ExpertMatrices& into);

// `count` values of a BF16, F16 or F32 tensor from value `first` on. Throws unsupported for other dtypes.
void load_f32(Checkpoint& checkpoint, const CheckpointTensor& tensor, int64_t first, std::span<float> into);

}  // namespace mixlane
