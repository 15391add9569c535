// How checkpoint families name the tensors of an MoE layer.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "io/checkpoint.hpp"

namespace mixlane {

enum class ExpertLayout : uint8_t {
  separate,       // a tensor per expert and matrix; fp8 ones with weight_scale_inv
  stacked_mxfp4,  // all experts in one tensor: blocks and scales, gate and up rows interleaved
};

// Names behind "<prefix>layers.<N>."; empty where a family has none.
struct Family {
  std::string_view name;
  ExpertLayout layout;
  std::string_view router;
  std::string_view router_bias;
  std::string_view correction_bias;
  std::string_view experts;  // separate: before "<expert>.<matrix>.weight"; stacked: before "<matrix>_blocks" and so on
  std::string_view gate, up, down;                 // stacked: `gate` names the fused matrix, `up` is empty
  std::array<std::string_view, 2> shared_experts;  // before "<matrix>.weight"; the first that is there
  std::string_view shared_gate;
};

struct CheckpointLayer {
  const Family* family = nullptr;
  std::string prefix;  // "model.layers.3."

  std::string tensor(std::string_view name) const { return prefix + std::string(name); }
};

// Throws invalid_argument listing the layers that have MoE weights, or the families that are known.
CheckpointLayer find_layer(const Checkpoint& checkpoint, int layer);

}  // namespace mixlane
