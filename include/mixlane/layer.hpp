// A whole MoE layer: routing -> dispatch -> align -> experts -> combine.
#pragma once

#include <functional>

#include "mixlane/align.hpp"
#include "mixlane/dispatch.hpp"
#include "mixlane/experts.hpp"
#include "mixlane/routing.hpp"

namespace mixlane {

struct MoeLayerConfig {
  RoutingConfig routing{};
  Activation activation{};
  DispatcherConfig dispatch{};  // hidden, num_topk and num_experts may be 0: filled in from the rest
  int align_block = 1;          // rows per block of the grouped GEMM
  // Variant per stage, "auto" or an id.
  std::string routing_variant = "auto";
  std::string dispatch_variant = "auto";
  std::string align_variant = "auto";
  std::string experts_variant = "auto";
  std::string combine_variant = "auto";
  bool batch_invariant = false;  // a token's bits don't depend on the other tokens: ExpertsArgs::batch_invariant
};

struct MoeLayerWeights {
  ExpertWeights experts{};                           // this rank's
  ExpertWeights shared{};                            // num_experts 0 or 1: the shared experts as one wide one, on every rank
  ConstTensorView shared_gate{};                     // optional bf16 [H]
  ConstTensorView correction_bias{};                 // optional f32 [E + Z]
  ConstTensorView replica_offsets{}, replica_ids{};  // optional, see RoutingArgs
};

struct MoeLayerArgs {
  ConstTensorView hidden{};                   // bf16 [T, H]
  ConstTensorView logits{};                   // f32|bf16|f16 [T, E + Z]
  ConstTensorView num_tokens{};               // optional i32 [1] in device memory
  ConstTensorView hash_table{}, token_ids{};  // optional, see RoutingArgs
  TensorView output{};                        // bf16|f32 [T, H]
  Status* status = nullptr;                   // first failure of any stage; nullptr: thrown (CPU only)
};

// Stages as they begin and end, for measuring: called on the rank's thread, for GPUs with the stream to record in.
enum class Stage : uint8_t { routing, dispatch, align, experts, shared_experts, combine };
std::string_view name(Stage stage);
using StageHook = std::function<void(Stage, bool begins, Stream)>;

// What the last forward routed and received, in device memory, for reports and for stages of one's own; valid until
// the next call.
struct ForwardView {
  ConstTensorView topk_ids{};       // i32 [T, K] physical experts
  ConstTensorView topk_weights{};   // f32 [T, K]
  ReceivedRows received{};          // counts and handle; the rows themselves may be overwritten already
  ConstTensorView expert_counts{};  // i32 [num_local_experts] pairs per local expert
};

// Composition only: each stage can be called on its own with the same arguments. One MoeLayer per rank and layer
// geometry; the dispatcher may be shared by all layers of that geometry. Collective like the dispatcher. After
// construction no call allocates symmetric memory or layer workspace; stages size theirs, in the context's arena, on
// their first call. A token that is refused (NaN logits, bad expert id) is sent nowhere and gets zero routed output; the
// call completes on every rank before it reports, so no peer is left waiting.
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
  const ForwardView& last_forward() const;
  // Workspace of the layer itself, reserved in whole at construction, used as far as there are tokens.
  int64_t workspace_bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace mixlane
