// What the stages of one cell work on, in host memory: each part is made when a stage first asks for it.
#pragma once

#include <span>
#include <vector>

#include "mixlane/model.hpp"
#include "workload/workload.hpp"

namespace mixlane::bench {

struct StageCell {
  const Model& shape;
  QuantFormat format = QuantFormat::none;
  int tokens = 0;
  Workload workload;
  int num_ranks = 1;  // that share the experts; the tokens are rank 0's
  uint64_t seed = 0;
};

class StageInputs {
 public:
  // `cpu` runs the references; it must outlive this.
  StageInputs(const StageCell& cell, Context& cpu);

  const StageCell& cell() const { return cell_; }
  Context& cpu() const { return cpu_; }
  int num_columns() const { return cell_.shape.routing.num_experts + cell_.shape.routing.num_zero_experts; }

  // i32 [T, K]: the experts that the workload gives each token; a zero expert is -1. Where there are many tokens, the first
  // kDistinctTokens repeat.
  std::span<const int32_t> topk_ids();
  // f32 [T, E + Z], standard normal, the largest at the workload's experts: routing takes those, but for models whose groups
  // or correction bias say otherwise.
  std::span<const float> logits();
  // f32 [E + Z], small; empty if the model has none.
  std::span<const float> correction_bias();
  // bf16 [T, H], standard normal.
  std::span<const uint16_t> hidden();
  // Pairs of each expert, as topk_ids() has them.
  std::vector<int64_t> expert_pairs();

  static constexpr int kDistinctTokens = 65536;

 private:
  const std::vector<int32_t>& columns();

  StageCell cell_;
  Context& cpu_;
  WorkloadRequest request_;
  std::vector<int32_t> columns_, ids_;
  std::vector<float> logits_, bias_;
  std::vector<uint16_t> hidden_;
};

}  // namespace mixlane::bench
