// Sums per row of what the experts make of its pairs: the last step of a call with `pair_slots`.
#pragma once

#include <algorithm>

#include "mixlane/experts.hpp"

namespace mixlane {

// Which slots belong to a row, and with which weights. Host memory.
class PairSums {
 public:
  explicit PairSums(const ExpertsArgs& args)
      : args_(args),
        num_topk_(args.num_topk),
        segment_rows_(args.segment_rows.given() ? std::max<int64_t>(args.rows.shape[0] / args.segment_rows.shape[0], 1) : 0),
        first_slot_(args.expert_offsets.as<int32_t>()[0]),
        end_slot_(args.expert_offsets.as<int32_t>()[args.weights.num_experts]) {}

  bool counts(int64_t row) const {
    return segment_rows_ == 0 || row % segment_rows_ < args_.segment_rows.as<int32_t>()[row / segment_rows_];
  }
  // -1 if the pair is none of the experts'.
  int64_t slot(int64_t row, int64_t k) const {
    const int64_t slot = args_.pair_slots.as<int32_t>()[row * num_topk_ + k];
    return slot >= first_slot_ && slot < end_slot_ ? slot : -1;
  }
  float weight(int64_t row, int64_t k) const {
    return args_.topk_weights.given() ? args_.topk_weights.as<float>()[row * args_.topk_weights.strides[0] + k] : 1.0f;
  }

 private:
  const ExpertsArgs& args_;
  int64_t num_topk_, segment_rows_, first_slot_, end_slot_;
};

// `pair_rows`: bf16 [slots, H], what a call without pair_slots writes. On the CPU.
void sum_pairs(const Context& context, const ExpertsArgs& args, const ConstTensorView& pair_rows);

}  // namespace mixlane
