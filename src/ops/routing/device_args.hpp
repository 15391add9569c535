// What the routing kernels get: RoutingArgs resolved to plain pointers and numbers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gpu/divider.hpp"
#include "mixlane/routing.hpp"

namespace mixlane::routing_gpu {

inline constexpr int kMaxTopk = 32;

struct KernelArgs {
  // Inputs; all but the logits may be null.
  const std::byte* logits = nullptr;
  int64_t row_bytes = 0;  // between rows
  DType logits_type = DType::f32;
  bool aligned = false;  // rows and biases are runs of four, aligned to their size
  bool plain = false;    // aligned, and logits are taken as they are
  const float* bias = nullptr;
  const int32_t* num_valid_rows = nullptr;
  const int32_t* hash_table = nullptr;
  const int32_t* token_ids = nullptr;
  const int32_t* replica_offsets = nullptr;
  const int32_t* replica_ids = nullptr;
  int32_t vocabulary = 0;
  int32_t num_replicas = 0;

  // Outputs
  void* ids = nullptr;
  float* weights = nullptr;
  float* zero_weights = nullptr;  // may be null
  Status* status = nullptr;       // may be null
  bool wide_ids = false;

  uint32_t num_tokens = 0;
  uint32_t num_experts = 0;
  uint32_t num_columns = 0;  // experts and zero experts
  uint32_t num_topk = 0;
  Scoring scoring = Scoring::softmax;
  bool renormalize = false;
  bool nan_is_lowest = false;
  float renorm_epsilon = 0.0f;
  float scale = 1.0f;
  float softcap = 0.0f;

  uint32_t num_groups = 1;
  uint32_t topk_groups = 1;
  GroupScore group_score = GroupScore::top2_sum;
  gpu::Divider by_group;  // experts of a group

  // What follows from the above
  bool chooses_by_score = false;  // a bias or groups: the order of the logits is not the order of the choice
  bool needs_sum = false;         // of all exponentials
};

}  // namespace mixlane::routing_gpu
