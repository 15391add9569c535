#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/routing/launchers.hpp"
#include "ops/routing/many.cuh"

namespace mixlane::routing_gpu {
namespace {

struct Where {
  uint32_t num_multiprocessors;
  bool overlap;
  Stream stream;
};

// Where the next call starts early, its first blocks find places beside this call's and the others go to the multiprocessors
// that are ready first, as many as fit: these would have more than their share, and all wait for them. Shared memory asked
// for and not used leaves each one places for whole shares only; the least that does, for what is left is a cache.
int64_t evenly_shared_bytes(uint32_t num_blocks, uint32_t resident, int64_t bytes, const Where& where) {
  constexpr int64_t kReserved = 1024;  // beside each block's
  constexpr int64_t kUnit = 128;
  const uint32_t share = (num_blocks + where.num_multiprocessors - 1) / where.num_multiprocessors;
  const int64_t all = gpu::max_shared_bytes(where.stream.device.index) + kReserved;
  resident = std::min(resident, static_cast<uint32_t>(all / (bytes + kReserved)));
  if (!where.overlap || share > resident || resident % share == 0) return bytes;
  const uint32_t places = resident / share * share;
  return std::max(bytes, (all / (places + 1) - kReserved) / kUnit * kUnit + kUnit);
}

template <DType kType, int kRuns, Order kOrder, bool kGrouped>
void launch(const KernelArgs& args, const Where& where) {
  constexpr uint32_t kTokens = kManyThreads / kManyLanes;
  constexpr bool kScored = kOrder == Order::score;
  constexpr uint32_t kResident = many_resident_blocks<kType, kRuns, kScored>();
  const uint32_t num_blocks = (args.num_tokens + kTokens - 1) / kTokens;
  gpu::launch(routing_warp_many<kType, kRuns, kOrder, kGrouped>,
              {.variant = "routing.warp",
               .num_blocks = num_blocks,
               .num_threads = kManyThreads,
               .shared_bytes = evenly_shared_bytes(num_blocks, kResident, many_block_bytes<kType, kRuns, kScored>(), where),
               .overlaps_previous = where.overlap},
              where.stream, args);
}

template <DType kType, int kRuns>
void launch_runs(const KernelArgs& args, const Where& where) {
  if (!args.chooses_by_score) return launch<kType, kRuns, Order::logit, false>(args, where);
  if constexpr (kRuns * 128 == kUsualGroups * 32) {
    if (args.num_groups > 1) return launch<kType, kRuns, Order::score, true>(args, where);
  }
  launch<kType, kRuns, Order::score, false>(args, where);
}

template <DType kType>
void launch_type(const KernelArgs& args, const Where& where) {
  switch (args.num_columns) {
    case 128: return launch_runs<kType, 1>(args, where);
    case 256: return launch_runs<kType, 2>(args, where);
    case 384: return launch_runs<kType, 3>(args, where);
    default: return launch_runs<kType, 4>(args, where);
  }
}

}  // namespace

bool takes_many(const KernelArgs& args) {
  return is_usual(args) && reinterpret_cast<uintptr_t>(args.logits) % 16 == 0 && args.row_bytes % 16 == 0 &&
         (args.num_groups == 1 || args.topk_groups > 1);
}

void launch_many(const KernelArgs& args, int num_multiprocessors, bool overlap, Stream stream) {
  const Where where{static_cast<uint32_t>(num_multiprocessors), overlap, stream};
  if (args.logits_type == DType::f32)
    launch_type<DType::f32>(args, where);
  else
    launch_type<DType::bf16>(args, where);
}

}  // namespace mixlane::routing_gpu
