// Calls of experts on a GPU with the memory of a case on the host.
#pragma once

#include <deque>
#include <memory>

#include "case.hpp"
#include "core/arena.hpp"
#include "ops/experts/op.hpp"
#include "support/gpu.hpp"

namespace mixlane::test {

// A call's arguments with twins of its memory on the device.
class DeviceCall {
 public:
  explicit DeviceCall(const ExpertsArgs& host) : args(host) {
    ExpertWeights& w = args.weights;
    for (ConstTensorView* view :
         {&w.gate_up, &w.gate_up_scales, &w.gate_up_bias, &w.down, &w.down_scales, &w.down_bias, &args.rows,
          &args.row_scales, &args.sorted_pairs, &args.expert_counts, &args.expert_offsets, &args.input_weights,
          &args.pair_slots, &args.topk_weights, &args.segment_rows})
      place(*view);
    place(args.output);
  }
  void send(Stream stream) const {
    for (const Twin& twin : twins_) twin.send(stream);
  }
  void fetch_output(Stream stream) const {
    twins_.back().fetch(stream);
    gpu::synchronize(stream);
  }

  ExpertsArgs args;

 private:
  template <class View>
  void place(View& view) {
    if (!view.given()) return;
    int64_t last = 0;
    for (int d = 0; d < view.ndim; ++d) last += (view.shape[d] - 1) * view.strides[d];
    const int64_t bytes =
        view.num_values() == 0
            ? 0
            : size_bytes(view.dtype, last + 1 + (view.dtype == DType::fp4_e2m1 ? 1 : 0) * ((last + 1) % 2));
    view.data = twins_.emplace_back(const_cast<void*>(view.data), bytes, 0).data();
    view.device = gpu_device();
  }
  std::deque<Twin> twins_;
};

inline std::vector<std::string> gpu_variants() {
  std::vector<std::string> ids;
  for (const Variant<ExpertsArgs>& variant : experts_gpu_variants()) ids.emplace_back(variant.info.id);
  return ids;
}

// A test per GPU variant.
class ExpertsOnGpu : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    std::string why;
    if (gpu::num_devices(&why) == 0) GTEST_SKIP() << why;
    context_ = std::make_unique<Context>(ContextOptions{.device = gpu_device()});
    stream_ = std::make_unique<gpu::OwnedStream>(gpu_device());
  }

  bool takes(const ExpertsArgs& args) const {
    for (const Variant<ExpertsArgs>& variant : experts_gpu_variants())
      if (variant.info.id == args.variant) return !variant.refuse || variant.refuse(*context_, args).empty();
    return false;
  }

  // NaNs wherever the call does not write before it reads.
  void poison_workspace() {
    Arena& arena = context_->arena();
    arena.reserve(1 << 22);
    const Arena::Scope scope(arena);
    const int64_t bytes = arena.capacity_bytes();
    gpu::fill(arena.take(bytes), 0xff, bytes, stream_->get());
  }
  // The call, with NaNs in the workspace; what it wrote is in the host's memory then.
  void run(const DeviceCall& call) {
    poison_workspace();
    call.send(stream_->get());
    run_experts(*context_, call.args, stream_->get());
    call.fetch_output(stream_->get());
  }

  std::unique_ptr<Context> context_;
  std::unique_ptr<gpu::OwnedStream> stream_;
};

}  // namespace mixlane::test
