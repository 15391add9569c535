// A whole MoE layer: routing -> dispatch -> align -> experts -> combine.
#pragma once

#include <functional>

#include "mixlane/align.hpp"
#include "mixlane/dispatch.hpp"
#include "mixlane/experts.hpp"
#include "mixlane/routing.hpp"

namespace mixlane {

struct MoeLayerConfig {
  RoutingConfig routing;
  Activation activation;
  DispatcherConfig dispatch;  // hidden, num_topk and num_experts may be 0: filled in from the rest
  int align_block = 1;        // rows per block of the grouped GEMM
  // Variant per stage, "auto" or an id.
  std::string routing_variant = "auto", dispatch_variant = "auto", align_variant = "auto", experts_variant = "auto",
              combine_variant = "auto";
};

struct MoeLayerWeights {
  ExpertWeights experts;            // this rank's
  ExpertWeights shared;             // num_experts 0 or 1: the shared experts as one wide one, on every rank
  ConstTensorView shared_gate;      // optional bf16 [H]
  ConstTensorView correction_bias;  // optional f32 [E + Z]
  ConstTensorView replica_offsets, replica_ids;  // optional, see RoutingArgs
};

struct MoeLayerArgs {
  ConstTensorView hidden;      // bf16 [T, H]
  ConstTensorView logits;      // f32|bf16|f16 [T, E + Z]
  ConstTensorView num_tokens;  // optional i32 [1] in device memory
  ConstTensorView hash_table, token_ids;  // optional, see RoutingArgs
  TensorView output;           // bf16|f32 [T, H]
  Status* status = nullptr;    // first failure of any stage; nullptr: thrown (CPU only)
};

// Stages as they begin and end, for measuring: called on the rank's thread, for GPUs with the stream to record in.
enum class Stage : uint8_t { routing, dispatch, align, experts, shared_experts, combine };
std::string_view name(Stage stage);
using StageHook = std::function<void(Stage, bool begins, Stream)>;

// Composition only: each stage can be called on its own with the same arguments. One MoeLayer per rank and layer
// geometry; the dispatcher may be shared by all layers of that geometry. Collective like the dispatcher. After
// construction no call allocates symmetric memory; workspace comes from the context's arena and is sized by
// dispatch.max_tokens on the first call.
class MoeLayer {
 public:
  MoeLayer(Context& context, std::shared_ptr<Dispatcher> dispatcher, const MoeLayerConfig& config,
           const MoeLayerWeights& weights);
  // Makes a dispatcher of its own.
  MoeLayer(Context& context, std::shared_ptr<Communicator> comm, const MoeLayerConfig& config,
           const MoeLayerWeights& weights);
  ~MoeLayer();

  void forward(const MoeLayerArgs& args, Stream stream = {});
  void set_stage_hook(StageHook hook);
  Dispatcher& dispatcher();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mixlane
