// Addend: what a token gets from its own rank, added by combine before the one rounding: the shared experts' row, scaled
// by their gate where the model has one, and the identity experts' share of the hidden row.
#pragma once

#include <vector>

#include "core/registry.hpp"

namespace mixlane {

// output[t] = shared_rows[t] * sigmoid(hidden[t] . shared_gate) + zero_weights[t] * hidden[t], in f32; a term or factor
// that is not given is left out. At least one term must be given.
struct AddendArgs {
  ConstTensorView hidden{};        // bf16 [T, H], rows may be strided
  ConstTensorView shared_rows{};   // optional bf16 [T, H]
  ConstTensorView shared_gate{};   // optional bf16 [H], with shared_rows
  ConstTensorView zero_weights{};  // optional f32 [T]
  TensorView output{};             // f32 [T, H]
  std::string_view variant = "auto";
};

// CPU variants: addend.cpu.
void add_local_terms(Context& context, const AddendArgs& args, Stream stream = {});

std::vector<VariantInfo> addend_variants();
void launch_addend_cpu(Context& context, const AddendArgs& args, Stream stream);

}  // namespace mixlane
