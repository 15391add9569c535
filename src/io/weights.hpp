// The weights of one MoE layer on one rank, with the memory behind them.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "mixlane/layer.hpp"
#include "mixlane/model.hpp"

namespace mixlane {

struct LayerWeights {
  MoeLayerWeights weights;      // what MoeLayer takes
  ConstTensorView router;       // bf16|f32 [E + Z, H]; given by checkpoints: logits = hidden . router^T + router_bias
  ConstTensorView router_bias;  // optional f32 [E + Z]
  int64_t owned_bytes = 0;      // allocated for the views; mapped files are not counted
  std::vector<std::shared_ptr<const void>> memory;  // keeps the views alive
};

struct WeightsRequest {
  Model model;
  QuantFormat format = QuantFormat::none;
  std::vector<int> experts;  // ids of the whole group's experts that this rank owns, in local order
};

// Bytes of `num_experts` routed experts and the shared one in a format, scales included, biases not.
int64_t expert_weight_bytes(const Model& model, QuantFormat format, int64_t num_experts);

// Random-normal weights with variance 1 / fan-in, the same for an expert whatever the number of ranks or threads. Made
// in parallel on the context's threads, written once.
LayerWeights random_weights(Context& context, const WeightsRequest& request, uint64_t seed);

// Layer `layer` of a Hugging Face checkpoint folder (*.safetensors, with or without an index). Maps only the ranges of
// this rank's experts; converts to request.format where the checkpoint holds another. Throws io_error, bad_format or
// invalid_argument naming file, tensor, what it is and what was expected.
LayerWeights load_weights(Context& context, const WeightsRequest& request, const std::filesystem::path& checkpoint,
                          int layer);

}  // namespace mixlane
