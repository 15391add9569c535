// Routing: router logits -> the experts of every token and their weights.
#pragma once

#include "mixlane/core.hpp"

namespace mixlane {

// How logits become scores.
enum class Scoring : uint8_t {
  softmax,        // over all experts, before the selection
  topk_softmax,   // selection on the logits, softmax over the selected ones (Mixtral, gpt-oss)
  sigmoid,        // DeepSeek-V3, Kimi-K2, GLM, MiniMax; Llama-4 with num_topk 1 and weight_on_input
  sqrt_softplus,  // DeepSeek-V4: sqrt(log(1 + exp(x)))
};

// How a group's score is made of its experts' biased scores, where num_groups > 1.
enum class GroupScore : uint8_t {
  max,       // DeepSeek-V2
  top2_sum,  // DeepSeek-V3
};

enum class NanPolicy : uint8_t {
  refuse,  // status nan_logits with the first such token; the token's ids are -1, its weights 0
  lowest,  // a NaN counts as -1e30
};

// The routing function of a model. Every step is skipped at its default value. In order:
//   x      = softcap > 0 ? softcap * tanh(logit / softcap) : logit;  -0 counts as +0
//   score  = scoring(x);  choice = score + correction_bias[e]
//   groups: experts outside the topk_groups best of num_groups groups can't be chosen
//   ids    = the num_topk largest `choice`, descending; equal ones by ascending expert index. Without bias and groups
//            x itself is compared: the same order, but scores that round to one number make no tie
//   weight = score of the chosen (without the bias); renormalise: / (sum + renorm_epsilon); * scale
// Scores are computed in f32, on every device by the same operations, so that all devices choose alike.
struct RoutingConfig {
  int num_experts = 0;       // E, 1..1024 real experts
  int num_zero_experts = 0;  // Z identity experts behind them (LongCat): logits have E + Z columns
  int num_topk = 0;          // K, 1..32
  Scoring scoring = Scoring::softmax;
  bool renormalize = false;     // divide the chosen weights by their sum; topk_softmax has sum 1 already
  float renorm_epsilon = 0.0f;  // added to that sum (MiniMax-M2: 1e-20)
  float scale = 1.0f;           // routed_scaling_factor
  int num_groups = 1;           // must divide num_experts
  int topk_groups = 1;
  GroupScore group_score = GroupScore::top2_sum;
  float softcap = 0.0f;          // Grok: 30
  bool weight_on_input = false;  // Llama-4: the weight multiplies the expert's input, not its output
  NanPolicy nan_policy = NanPolicy::refuse;
};

// Throws invalid_argument naming the field, its value and its range.
void validate(const RoutingConfig& config);

struct RoutingArgs {
  RoutingConfig config{};
  ConstTensorView logits{};           // f32|bf16|f16 [T, E + Z], rows may be strided
  ConstTensorView correction_bias{};  // optional f32 [E + Z]: added for the choice only
  ConstTensorView num_valid_rows{};   // optional i32 [1] in device memory: rows from there on get ids -1, weights 0

  // Hash routing (first layers of DeepSeek-V4): ids come from a table, weights from the scores of those experts.
  ConstTensorView hash_table{};  // optional i32 [vocabulary, K]
  ConstTensorView token_ids{};   // i32 [T], required with hash_table

  // Replicas: logical expert e has the physical experts replica_ids[replica_offsets[e] .. replica_offsets[e + 1]).
  // The replica is picked by token index modulo the replica count, so the choice is deterministic and spreads evenly.
  ConstTensorView replica_offsets{};  // optional i32 [E + 1]
  ConstTensorView replica_ids{};      // i32 [replica_offsets[E]]

  TensorView topk_ids{};      // out i32|i64 [T, K]: physical ids if replicas are given, else logical; a zero expert is -1
  TensorView topk_weights{};  // out f32 [T, K]: a zero expert's is 0
  TensorView zero_weights{};  // out, required if num_zero_experts > 0: f32 [T], the summed weight of the identity experts

  Status* status = nullptr;  // receives nan_logits or bad_expert_id (hash table, token id); nullptr: thrown (CPU only)
  std::string_view variant = "auto";
};

// Graph-safe on GPUs: shapes are fixed at capture, the row count is read on the device.
// Variants: routing.cpu; routing.warp on GPUs. Sources of the functions: docs/stages/routing.md.
void route(Context& context, const RoutingArgs& args, Stream stream = {});

}  // namespace mixlane
