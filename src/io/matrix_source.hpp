// A weight matrix as a checkpoint holds it, and its way into memory.
#pragma once

#include "io/expert_storage.hpp"
#include "io/weight_memory.hpp"

namespace mixlane {

enum class SourceFormat : uint8_t {
  plain,      // BF16, F16 or F32
  fp8_block,  // F8_E4M3 and one F32 per 128x128 block
  mxfp4,      // e2m1 pairs and one e8m0 per 32 values of a row
};

// Consecutive rows of a matrix: the gate rows, the up rows, or all of them.
struct Slab {
  SourceFormat format = SourceFormat::plain;
  RowRun values;  // a row of the run is a row of the matrix
  RowRun scales;  // fp8_block: a row of blocks; mxfp4: a row; plain: none
  int64_t num_rows() const { return values.count; }
};

// One expert's matrix, its slabs in the order of the rows; all of them have one format.
struct MatrixSource {
  int64_t cols = 0;
  std::vector<Slab> slabs;
  int64_t num_rows() const;
};

// A separate tensor [rows, cols], with `<name>_scale_inv` beside it if it is fp8. Throws unless its shape is that.
Slab separate_slab(Checkpoint& checkpoint, const std::string& name, int64_t rows, int64_t cols);

// Expert `expert` of `<name>_blocks` [num_experts, rows, cols / 32, 16] and `<name>_scales`; `ways` as in RowRun.
struct StackedShape {
  int64_t num_experts = 0;
  int64_t rows = 0;
  int64_t cols = 0;
};
Slab stacked_slab(Checkpoint& checkpoint, const std::string& name, const StackedShape& shape, int64_t expert, int ways);

// Throws invalid_argument naming the tensor, its shape and the expected one.
void require_shape(const CheckpointTensor& tensor, std::initializer_list<int64_t> expected);
// Throws unsupported naming the tensor unless it is BF16, F16 or F32.
void require_plain(const CheckpointTensor& tensor);

// A matrix that is stored in another format than it is wanted in.
struct Conversion {
  MatrixSource from;
  QuantFormat format = QuantFormat::none;
  TensorView values;
  TensorView scales;
};

// What fills a layer's matrices.
struct LoadPlan {
  std::vector<Transfer> transfers;
  std::vector<Conversion> conversions;
};

// Of the files.
int64_t bytes_read(const LoadPlan& plan);

bool is_direct(const MatrixSource& source, QuantFormat format);
// Expert i of `into` comes from sources[i]: by transfers where it is_direct(), else by a conversion.
void plan_matrices(const std::vector<MatrixSource>& sources, const ExpertMatrices& into, LoadPlan& plan);

// Decodes to f32 and encodes once, where the weights are going to be. Some matrices are fetched at a time.
void run_conversions(WeightMemory& memory, const std::vector<Conversion>& conversions);
// At most the memory that run_conversions() takes for these.
int64_t conversion_bytes(const WeightMemory& memory, const std::vector<MatrixSource>& sources, QuantFormat format);

}  // namespace mixlane
