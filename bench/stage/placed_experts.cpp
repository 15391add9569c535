#include "stage/placed_experts.hpp"

#include <algorithm>

namespace mixlane::bench {
namespace {

constexpr int kDistinctExperts = 2;

LayerWeights make_weights(Context& cpu, Model model, QuantFormat format, int num_experts, uint64_t seed) {
  std::vector<int> ids;
  for (int e = 0; e < std::min(kDistinctExperts, num_experts); ++e) ids.push_back(e);
  model.shared_intermediate = 0;
  return random_weights(cpu, {model, format, ids}, seed);
}

// `count` experts from those that are made.
DeviceTensor spread(Device device, const ConstTensorView& made, int count) {
  DeviceTensor all = made.ndim == 3 ? DeviceTensor(device, made.dtype, {count, made.shape[1], made.shape[2]}, 1)
                                    : DeviceTensor(device, made.dtype, {count, made.shape[1]}, 1);
  const int64_t bytes = all.bytes() / count;
  auto* to = static_cast<std::byte*>(all.view(0).data);
  const gpu::OwnedStream stream(device);
  for (int64_t e = 0; e < count; ++e)
    gpu::copy(to + e * bytes,
              e < made.shape[0] ? static_cast<const std::byte*>(made.data) + e * bytes : to + e % made.shape[0] * bytes,
              bytes, stream.get());
  gpu::synchronize(stream.get());
  return all;
}

std::array<ConstTensorView*, 6> views_of(ExpertWeights& weights) {
  return {&weights.gate_up, &weights.gate_up_scales, &weights.gate_up_bias,
          &weights.down,    &weights.down_scales,    &weights.down_bias};
}

}  // namespace

ConstTensorView part_of(ConstTensorView view, int64_t index) {
  if (!view.given()) return view;
  view.data = static_cast<const std::byte*>(view.data) + size_bytes(view.dtype, index * view.strides[0]);
  view.shape[0] = 1;
  return view;
}

PlacedExperts::PlacedExperts(Context& cpu, Device device, const Model& model, QuantFormat format, int num_experts,
                             uint64_t seed)
    : made_(make_weights(cpu, model, format, num_experts, seed)), on_device_(made_.weights.experts) {
  for (int e = 0; e < on_device_.num_experts; ++e) {
    ExpertWeights one = on_device_;
    one.num_experts = 1;
    for (ConstTensorView* view : views_of(one)) *view = part_of(*view, e);
    on_host_.push_back(one);
  }
  on_device_.num_experts = num_experts;
  const std::array views = views_of(on_device_);
  for (size_t i = 0; i < views.size(); ++i) {
    if (!views[i]->given()) continue;
    weights_[i] = spread(device, *views[i], num_experts);
    *views[i] = weights_[i].view(0);
  }
}

}  // namespace mixlane::bench
