#include "gpu/launch.hpp"
#include "ops/routing/launchers.hpp"
#include "ops/routing/usual.cuh"

namespace mixlane::routing_gpu {
namespace {

using Kernel = void (*)(KernelArgs, uint32_t);

template <DType kType, int kRuns>
Kernel kernel_for(const KernelArgs& args) {
  if (!args.chooses_by_score) return routing_warp_usual<kType, kRuns, Order::logit, false>;
  if constexpr (kRuns * 128 == kUsualGroups * 32) {
    if (args.num_groups > 1) return routing_warp_usual<kType, kRuns, Order::score, true>;
  }
  return routing_warp_usual<kType, kRuns, Order::score, false>;
}

template <DType kType>
Kernel kernel_for(const KernelArgs& args) {
  switch (args.num_columns) {
    case 128: return kernel_for<kType, 1>(args);
    case 256: return kernel_for<kType, 2>(args);
    case 384: return kernel_for<kType, 3>(args);
    default: return kernel_for<kType, 4>(args);
  }
}

bool has_usual_weights(const KernelArgs& args) {
  if (!args.chooses_by_score)
    return args.scoring == Scoring::topk_softmax || (args.scoring == Scoring::softmax && !args.needs_sum);
  const bool usual_groups =
      args.num_groups == kUsualGroups && args.num_columns == kUsualGroups * 32 && 2 * args.topk_groups >= args.num_topk;
  return args.scoring == Scoring::sigmoid && args.bias && (args.num_groups == 1 || usual_groups);
}

}  // namespace

bool is_usual(const KernelArgs& args) {
  return gpu::kHardwareWave == 32 && args.plain && args.logits_type != DType::f16 && args.num_columns % 128 == 0 &&
         args.num_columns <= 512 && args.num_topk <= kUsualTopk && args.num_columns == args.num_experts && !args.wide_ids &&
         !args.hash_table && !args.replica_offsets && has_usual_weights(args);
}

void launch_usual(const KernelArgs& args, int num_multiprocessors, bool overlap, Stream stream) {
  const Kernel kernel = args.logits_type == DType::f32 ? kernel_for<DType::f32>(args) : kernel_for<DType::bf16>(args);
  // One token per multiprocessor is quickest while there are enough of those.
  uint32_t per_block = 1;
  while (args.num_tokens > 2 * static_cast<uint32_t>(num_multiprocessors) * per_block && per_block * 2 * 32 <= kMaxThreads)
    per_block *= 2;
  const uint32_t scratch_bytes =
      std::max<uint32_t>(sizeof(Scratch), args.num_groups > 1 ? group_scratch_bytes<32>(args) : 0);
  const uint32_t wave_bytes = args.num_columns * 4 + (scratch_bytes + 15) / 16 * 16;
  gpu::launch(kernel,
              {.variant = "routing.warp",
               .num_blocks = (args.num_tokens + per_block - 1) / per_block,
               .num_threads = per_block * 32,
               .shared_bytes = static_cast<int64_t>(per_block) * wave_bytes,
               .overlaps_previous = overlap},
              stream, args, wave_bytes);
}

}  // namespace mixlane::routing_gpu
