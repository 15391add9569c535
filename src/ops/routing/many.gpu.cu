#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/routing/launchers.hpp"
#include "ops/routing/many.cuh"

namespace mixlane::routing_gpu {
namespace {

constexpr uint32_t kUsualTokens = 32;  // of a block

uint32_t divide_up(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

// Tokens of a block, whole waves. As many blocks for every multiprocessor, one where that is enough: each new block takes
// its time. Of many none is the last by far.
uint32_t pick_block_tokens(uint32_t num_tokens, uint32_t num_multiprocessors, uint32_t max_tokens) {
  constexpr uint32_t kFew = 2;
  constexpr uint32_t kWaveTokens = gpu::kHardwareWave / kManyLanes;
  const uint32_t share = divide_up(num_tokens, num_multiprocessors);
  const uint32_t num_blocks = divide_up(share, max_tokens);  // of a multiprocessor
  if (num_blocks > kFew) return std::min(kUsualTokens, max_tokens);
  return divide_up(divide_up(share, num_blocks), kWaveTokens) * kWaveTokens;
}

template <DType kType, int kRuns, Order kOrder, bool kGrouped>
void launch(KernelArgs args, int num_multiprocessors, bool overlap, Stream stream) {
  constexpr bool kScored = kOrder == Order::score;
  const auto multiprocessors = static_cast<uint32_t>(num_multiprocessors);
  constexpr uint32_t kMaxTokens = many_max_tokens<kType, kRuns, kScored>();
  const uint32_t tokens = pick_block_tokens(args.num_tokens, multiprocessors, kMaxTokens);
  const uint32_t num_blocks = divide_up(args.num_tokens, tokens);
  args.next_fits = 2 * divide_up(num_blocks, multiprocessors) * tokens <= kManyBlocks * kMaxTokens;
  gpu::launch(routing_warp_many<kType, kRuns, kOrder, kGrouped>,
              {.variant = "routing.warp",
               .num_blocks = num_blocks,
               .num_threads = tokens * kManyLanes,
               .shared_bytes = many_block_bytes<kType, kRuns, kScored>(tokens),
               .overlaps_previous = overlap},
              stream, args);
}

template <DType kType, int kRuns>
void launch_runs(const KernelArgs& args, int num_multiprocessors, bool overlap, Stream stream) {
  if (!args.chooses_by_score) return launch<kType, kRuns, Order::logit, false>(args, num_multiprocessors, overlap, stream);
  if constexpr (kRuns * 128 == kUsualGroups * 32) {
    if (args.num_groups > 1) return launch<kType, kRuns, Order::score, true>(args, num_multiprocessors, overlap, stream);
  }
  launch<kType, kRuns, Order::score, false>(args, num_multiprocessors, overlap, stream);
}

template <DType kType>
void launch_type(const KernelArgs& args, int num_multiprocessors, bool overlap, Stream stream) {
  switch (args.num_columns) {
    case 128: return launch_runs<kType, 1>(args, num_multiprocessors, overlap, stream);
    case 256: return launch_runs<kType, 2>(args, num_multiprocessors, overlap, stream);
    case 384: return launch_runs<kType, 3>(args, num_multiprocessors, overlap, stream);
    default: return launch_runs<kType, 4>(args, num_multiprocessors, overlap, stream);
  }
}

}  // namespace

bool takes_many(const KernelArgs& args) {
  return is_usual(args) && reinterpret_cast<uintptr_t>(args.logits) % 16 == 0 && args.row_bytes % 16 == 0 &&
         (args.num_groups == 1 || args.topk_groups > 1);
}

void launch_many(const KernelArgs& args, int num_multiprocessors, bool overlap, Stream stream) {
  if (args.logits_type == DType::f32)
    launch_type<DType::f32>(args, num_multiprocessors, overlap, stream);
  else
    launch_type<DType::bf16>(args, num_multiprocessors, overlap, stream);
}

}  // namespace mixlane::routing_gpu
