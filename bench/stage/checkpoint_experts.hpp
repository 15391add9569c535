// A rank's experts from a checkpoint, on the device under test, and how fast they came there.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "mixlane/weights.hpp"
#include "stage/placed_experts.hpp"

namespace mixlane::bench {

struct CheckpointSource {
  std::filesystem::path folder;
  int layer = 0;
  Model model;
  QuantFormat format = QuantFormat::none;
  int num_experts = 0;  // of rank 0: experts 0 and following
};

// Of whole loads, from the open folder to all weights being there.
struct LoadFigures {
  int64_t read_bytes = 0;
  int64_t stored_bytes = 0;  // on the device
  double open_s = 0;         // the folder's index and headers
  double first_s = 0;        // files may have come from the disk
  double best_s = 0;         // of all loads, the first included
  int num_loads = 0;
  double copy_gbs = 0;  // a bare copy from pinned host memory to the device
};

class CheckpointExperts final : public PlacedExperts {
 public:
  // Loads until the weights have been there three times, or once if that takes long. `cpu` must outlive this.
  CheckpointExperts(Context& cpu, Context& device, CheckpointSource source);

  const ExpertWeights& on_device() const override { return loaded_.weights.experts; }
  // As the CPU's loader reads it; kept.
  ExpertWeights on_host(int expert) override;
  const LoadFigures& figures() const { return figures_; }

 private:
  Context& cpu_;
  CheckpointSource source_;
  LayerWeights loaded_;
  LoadFigures figures_;
  std::optional<WeightLoader> host_loader_;  // once it is needed
  std::map<int, LayerWeights> on_host_;
};

// "weights of layer 3, 32 experts in fp8: 1.41 GB read and 1.41 GB stored in 0.031 s, 45.1 GB/s read, 81 % of a bare
// copy's 55.5 GB/s (...)".
std::string load_text(const CheckpointSource& source, const LoadFigures& figures);

}  // namespace mixlane::bench
