// The inside of align: sizes, cost and the table of variants. The contract is in mixlane/align.hpp.
#pragma once

#include <vector>

#include "core/registry.hpp"
#include "mixlane/align.hpp"
#include "ops/cost.hpp"

namespace mixlane {

// The sizes that follow from valid arguments.
struct AlignShape {
  int64_t rows = 0;
  int64_t num_topk = 0;
  int64_t num_segments = 1;
  int num_local_experts = 0;
  bool bucket = false;  // an invalid bucket comes before the experts' groups
  int32_t pad_value = 0;

  explicit AlignShape(const AlignArgs& args);
  int64_t num_pairs() const { return rows * num_topk; }
  int num_groups() const { return num_local_experts + (bucket ? 1 : 0); }
};

// Throws invalid_argument. Looks at shapes and options only; what lies in tensors is checked by the variants.
void validate(const Context& context, const AlignArgs& args);

// For rows that all count; a device-side row count lowers it in proportion.
Cost align_cost(const AlignArgs& args);

std::vector<VariantInfo> align_variants();

// Variants
void launch_align_cpu(Context& context, const AlignArgs& args, Stream stream);
// The GPU's, the simpler one first; none in a build without a GPU backend.
std::span<const Variant<AlignArgs>> align_gpu_variants();

// The one that runs; "auto" by tuned tables on GPUs (choose.hpp).
const Variant<AlignArgs>& select_align(const Context& context, const AlignArgs& args);

}  // namespace mixlane
