// Is the layer's output right? A sample of every rank's tokens against the plain reference, on the ranks themselves.
#pragma once

#include "measure/gate.hpp"
#include "mixlane/layer.hpp"
#include "mixlane/weights.hpp"
#include "results/record.hpp"
#include "run/tokens.hpp"

namespace mixlane::bench {

struct CheckRequest {
  const MoeLayerConfig& config;
  const LayerWeights& weights;
  const TokenSource& tokens;
  ConstTensorView expert_map;  // i32 [E]: this rank's index of each expert or -1
  ConstTensorView output;      // bf16 [T, H]: what the layer made of this rank's tokens
};

// Collective; the same verdict on all ranks. Each rank computes what its own experts add to the sampled tokens of all ranks,
// with experts.reference on routing.cpu's choice; the owner of a token sums that in f64 with its shared and identity
// experts. Never throws for a wrong output.
Correctness check_layer(Context& context, Gate& gate, const CheckRequest& request);

// Mailbox bytes that it needs of the gate.
int64_t check_mailbox_bytes(int hidden);

// The error allowed: the relative Frobenius norm that roundings explain.
double tolerance(QuantFormat format);

}  // namespace mixlane::bench
