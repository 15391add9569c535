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
  int64_t owned_bytes = 0;      // allocated for the views
  int64_t read_bytes = 0;       // read from a checkpoint for them
  std::vector<std::shared_ptr<const void>> memory;  // keeps the views alive
};

struct WeightsRequest {
  Model model;
  QuantFormat format = QuantFormat::none;
  std::vector<int> experts;  // ids of the whole group's experts that this rank owns, in local order
  // load_weights(): only weights.experts; the router, its biases, shared experts and their gate are left out.
  bool experts_only = false;
};

// Bytes of `num_experts` routed experts and the shared one in a format, scales included, biases not.
int64_t expert_weight_bytes(const Model& model, QuantFormat format, int64_t num_experts);

// Random-normal weights with variance 1 / fan-in, the same for an expert whatever the number of ranks or threads, in host
// memory. Made in parallel on the threads of the context, which must be a CPU's, and written once.
LayerWeights random_weights(Context& context, const WeightsRequest& request, uint64_t seed);

// A Hugging Face checkpoint folder (*.safetensors, with or without an index), opened once for any number of its layers.
// Weights go to the memory of the context's device: host memory, or a GPU's, aligned to 256 bytes. The layout is that of
// ExpertWeights on every device, and the bytes are the same. The context must outlive the loader; one thread at a time.
class WeightLoader {
 public:
  // Throws io_error or bad_format naming the file.
  WeightLoader(Context& context, const std::filesystem::path& checkpoint);
  ~WeightLoader();

  // Reads only this rank's experts, on the context's threads; converts to request.format where the checkpoint holds another,
  // on the device (docs/checkpoints.md). Returns when all of it is there; on a GPU it uses a stream of its own and must not
  // be captured. Throws io_error, bad_format, invalid_argument or unsupported naming file, tensor, what it is and what was
  // expected, and out_of_memory with the sizes before anything is read; nothing stays allocated then.
  LayerWeights load(const WeightsRequest& request, int layer);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// One layer, by a loader of its own.
LayerWeights load_weights(Context& context, const WeightsRequest& request, const std::filesystem::path& checkpoint,
                          int layer);

}  // namespace mixlane
