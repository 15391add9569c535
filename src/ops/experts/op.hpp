// The experts op: what launchers get after validation, the table of variants, and the work of a call.
//
//   slot s of expert e -> pair p = sorted_pairs[s] (s itself for one dense expert) -> row p / K of `rows` (optionally times
//   the pair's weight)
//     -> gate_up [2 I or I, H] -> + bias -> activation -> rounded or quantised [I]
//     -> down [H, I] -> + bias -> bf16 row at slot s
//   with pair_slots: the weighted sum of each row's pairs (sum_pairs.hpp)
#pragma once

#include <span>
#include <vector>

#include "core/registry.hpp"
#include "mixlane/experts.hpp"
#include "ops/cost.hpp"

namespace mixlane {

// Rows of gate_up per expert: the gate's and the up's, or x's alone.
inline int64_t gate_up_rows(const ExpertWeights& weights, const Activation& activation) {
  return (activation.gated() ? 2 : 1) * int64_t{weights.intermediate};
}

// Slots that can hold pairs.
int64_t num_slots(const ExpertsArgs& args);

// Throws invalid_argument. Looks at shapes and options, and on the CPU at the slots as well.
void validate(const Context& context, const ExpertsArgs& args);

// Work of a call in which `num_touched_experts` have rows, `num_pairs` in all: each touched expert's weights, each pair's
// row in and out.
Cost experts_cost(const ExpertsArgs& args, int64_t num_touched_experts, int64_t num_pairs);

std::vector<VariantInfo> experts_variants();
// Defined by gpu.cpp, or by no_gpu.cpp in a build without a GPU backend. Best first.
std::span<const Variant<ExpertsArgs>> experts_gpu_variants();

// The variant that run_experts would take for valid `args`. Throws what it would throw.
const Variant<ExpertsArgs>& select_experts(const Context& context, const ExpertsArgs& args);

// Launchers: arguments are valid.
void launch_experts_reference(Context& context, const ExpertsArgs& args, Stream stream);
void launch_experts_onednn(Context& context, const ExpertsArgs& args, Stream stream);

// Why experts.onednn can't run here: what is missing and how to get it. Empty if it can; loads it at the first call.
std::string onednn_missing(const Context& context);

}  // namespace mixlane
