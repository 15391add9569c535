#include "gpu/launch.hpp"
#include "ops/routing/launchers.hpp"
#include "ops/routing/many.cuh"

namespace mixlane::routing_gpu {
namespace {

template <DType kType, int kRuns, Order kOrder, bool kGrouped>
void launch(const KernelArgs& args, bool overlap, Stream stream) {
  constexpr uint32_t kTokens = kManyThreads / kManyLanes;
  constexpr bool kScored = kOrder == Order::score;
  const uint32_t num_blocks = (args.num_tokens + kTokens - 1) / kTokens;
  gpu::launch(routing_warp_many<kType, kRuns, kOrder, kGrouped>,
              {.variant = "routing.warp",
               .num_blocks = num_blocks,
               .num_threads = kManyThreads,
               .shared_bytes = many_block_bytes<kType, kRuns, kScored>(),
               .overlaps_previous = overlap},
              stream, args);
}

template <DType kType, int kRuns>
void launch_runs(const KernelArgs& args, bool overlap, Stream stream) {
  if (!args.chooses_by_score) return launch<kType, kRuns, Order::logit, false>(args, overlap, stream);
  if constexpr (kRuns * 128 == kUsualGroups * 32) {
    if (args.num_groups > 1) return launch<kType, kRuns, Order::score, true>(args, overlap, stream);
  }
  launch<kType, kRuns, Order::score, false>(args, overlap, stream);
}

template <DType kType>
void launch_type(const KernelArgs& args, bool overlap, Stream stream) {
  switch (args.num_columns) {
    case 128: return launch_runs<kType, 1>(args, overlap, stream);
    case 256: return launch_runs<kType, 2>(args, overlap, stream);
    case 384: return launch_runs<kType, 3>(args, overlap, stream);
    default: return launch_runs<kType, 4>(args, overlap, stream);
  }
}

}  // namespace

bool takes_many(const KernelArgs& args) {
  return is_usual(args) && reinterpret_cast<uintptr_t>(args.logits) % 16 == 0 && args.row_bytes % 16 == 0 &&
         (args.num_groups == 1 || args.topk_groups > 1);
}

void launch_many(const KernelArgs& args, bool overlap, Stream stream) {
  if (args.logits_type == DType::f32)
    launch_type<DType::f32>(args, overlap, stream);
  else
    launch_type<DType::bf16>(args, overlap, stream);
}

}  // namespace mixlane::routing_gpu
