// Everything one rank holds for one model and quantisation: windows, weights, the layer.
#pragma once

#include <memory>

#include "mixlane/weights.hpp"
#include "run/options.hpp"

namespace mixlane::bench {

class Rig {
 public:
  // Makes the windows; collective. The weights come with load(), so that the user can be told their size before.
  Rig(Context& context, std::shared_ptr<Communicator> comm, const BenchOptions& options, QuantFormat format);

  // What load() will make, by the shapes; windows of this rank.
  int64_t expected_weight_bytes() const;
  int64_t window_bytes() const;
  void load();

  QuantFormat format() const { return format_; }
  const MoeLayerConfig& config() const { return config_; }
  const LayerWeights& weights() const { return weights_; }
  Dispatcher& dispatcher() { return *dispatcher_; }
  MoeLayer& layer() { return *layer_; }
  Context& context() { return context_; }

 private:
  Context& context_;
  const BenchOptions& options_;
  QuantFormat format_;
  MoeLayerConfig config_;
  std::shared_ptr<Dispatcher> dispatcher_;
  LayerWeights weights_;
  std::unique_ptr<MoeLayer> layer_;
};

}  // namespace mixlane::bench
