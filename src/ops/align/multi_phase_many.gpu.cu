#include <algorithm>

#include "gpu/launch.hpp"
#include "ops/align/launchers.hpp"
#include "ops/align/multi_phase_many.cuh"

namespace mixlane::align_gpu {
namespace {

// One block of a multiprocessor, whose registers hold the codes of up to 64512 pairs.
constexpr int kThreads = 512;
constexpr int kMaxRows = 126;
template <bool kPlain, class Counter>
using Sorter = RegisterTile<kThreads, kMaxRows, gpu::kHardwareWave, kPlain, Counter>;
// Of fewer pairs of a multiprocessor, so many and so many per code, the kernel of align.multi_phase for small tiles is
// quicker, whose plan takes less time.
constexpr uint32_t kMinPairs = 4096;
constexpr uint32_t kMinPairsPerCode = 22;
// Tiles of fewer rows (16384 pairs) are not worth it.
constexpr uint32_t kMinRows = 32;

uint32_t num_multiprocessors(Device device) { return static_cast<uint32_t>(gpu::num_multiprocessors(device.index)); }

struct Cut {
  uint32_t num_tiles;
  uint32_t rows;  // of a wave in each; 0: there is too little shared memory
};

// The fewest tiles that shared memory and 16 bits allow.
template <class Sorter>
Cut cut_chunk(const KernelArgs& args, Device device) {
  const int64_t available = gpu::max_shared_bytes(device.index);
  const auto fits = [&](uint32_t rows) {
    return many_shared_bytes<Sorter>(args.num_codes, rows) <= available &&
           Sorter::fits(rows * Sorter::kThreads, args.num_codes);
  };
  uint32_t max_rows = kMaxRows;
  while (max_rows >= kMinRows && !fits(max_rows)) --max_rows;
  if (max_rows < kMinRows) return {0, 0};
  const uint32_t share = even_share(args.source.num_pairs, num_multiprocessors(device));
  const uint32_t rows = std::max((share + kThreads - 1) / kThreads, 1u);
  const uint32_t num_tiles = (rows + max_rows - 1) / max_rows;
  return {num_tiles, (rows + num_tiles - 1) / num_tiles};
}

template <class Sorter>
void launch_sorter(const KernelArgs& args, uint32_t rows, Device device, Stream stream) {
  gpu::launch(align_multi_phase_many<Sorter>,
              {.variant = "align.multi_phase",
               .num_blocks = num_multiprocessors(device),
               .num_threads = Sorter::kThreads,
               .shared_bytes = many_shared_bytes<Sorter>(args.num_codes, rows),
               .cooperative = true},
              stream, args, rows);
}

template <bool kPlain>
void launch_any(const KernelArgs& args, Device device, Stream stream) {
  const Cut wide = cut_chunk<Sorter<kPlain, uint32_t>>(args, device);
  const Cut narrow = cut_chunk<Sorter<kPlain, uint16_t>>(args, device);
  // Counters of 32 bits cost less, more tiles cost more.
  if (wide.rows != 0 && wide.num_tiles <= narrow.num_tiles)
    launch_sorter<Sorter<kPlain, uint32_t>>(args, wide.rows, device, stream);
  else
    launch_sorter<Sorter<kPlain, uint16_t>>(args, narrow.rows, device, stream);
}

}  // namespace

bool takes_many(const KernelArgs& args, Device device) {
  return args.source.num_pairs / num_multiprocessors(device) >= kMinPairs + kMinPairsPerCode * args.num_codes &&
         cut_chunk<Sorter<false, uint16_t>>(args, device).rows != 0;
}

int64_t many_workspace_words(const KernelArgs& args, Device device) {
  return Matrix::words(args.num_codes, num_multiprocessors(device));
}

void launch_many(const KernelArgs& args, bool plain, Device device, Stream stream) {
  if (plain && !args.source.bucket)
    launch_any<true>(args, device, stream);
  else
    launch_any<false>(args, device, stream);
}

}  // namespace mixlane::align_gpu
