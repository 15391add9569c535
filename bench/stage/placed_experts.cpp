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

}  // namespace

ConstTensorView part_of(ConstTensorView view, int64_t index) {
  if (!view.given()) return view;
  view.data = static_cast<const std::byte*>(view.data) + size_bytes(view.dtype, index * view.strides[0]);
  view.shape[0] = 1;
  return view;
}

RandomExperts::RandomExperts(Context& cpu, Device device, const Model& model, QuantFormat format, int num_experts,
                             uint64_t seed)
    : made_(make_weights(cpu, model, format, num_experts, seed)) {
  on_device_ = made_.weights.experts;
  on_device_.num_experts = num_experts;
  const std::array<ConstTensorView*, 6> views{&on_device_.gate_up, &on_device_.gate_up_scales, &on_device_.gate_up_bias,
                                              &on_device_.down,    &on_device_.down_scales,    &on_device_.down_bias};
  for (size_t i = 0; i < views.size(); ++i) {
    if (!views[i]->given()) continue;
    weights_[i] = spread(device, *views[i], num_experts);
    *views[i] = weights_[i].view(0);
  }
}

ExpertWeights RandomExperts::on_host(int expert) {
  ExpertWeights one = made_.weights.experts;
  one.num_experts = 1;
  for (ConstTensorView* view :
       {&one.gate_up, &one.gate_up_scales, &one.gate_up_bias, &one.down, &one.down_scales, &one.down_bias})
    *view = part_of(*view, distinct_index(expert));
  return one;
}

}  // namespace mixlane::bench
