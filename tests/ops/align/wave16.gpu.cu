#include "gpu/launch.hpp"
#include "ops/align/multi_phase_gather.cuh"
#include "ops/align/none.cuh"
#include "ops/align/oneshot.cuh"
#include "ops/align/radix.cuh"
#include "wave16.hpp"

namespace mixlane::test {

using namespace align_gpu;

void launch_none_of_16(const KernelArgs& args, bool plain, Stream stream) {
  gpu::launch(plain ? align_none<16, true> : align_none<16, false>,
              {.variant = "none of 16", .num_blocks = 8, .num_threads = kMaxNonePairs}, stream, args);
}

void launch_oneshot_of_16(const KernelArgs& args, bool plain, Stream stream) {
  using SmallTile = Tile<256, 16, 16>;
  static_assert(SmallTile::kPairs == kMaxOneshotPairsOf16);
  gpu::launch(plain ? align_oneshot<SmallTile, true> : align_oneshot<SmallTile, false>,
              {.variant = "oneshot of 16",
               .num_blocks = 3,
               .num_threads = SmallTile::kThreads,
               .shared_bytes = SmallTile::shared_bytes(args.num_codes) + Direct<SmallTile>::kBytes},
              stream, args);
}

int64_t radix_words_of_16(const KernelArgs& args) {
  return RadixSpace::words(args.source.num_pairs, args.num_codes, kRadixBlocksOf16);
}

void launch_radix_of_16(const KernelArgs& args, bool plain, Stream stream) {
  using SmallTile = DigitTile<256, 8, 16>;
  gpu::launch(
      plain ? align_radix<SmallTile, true> : align_radix<SmallTile, false>,
      {.variant = "radix of 16", .num_blocks = kRadixBlocksOf16, .num_threads = SmallTile::kThreads, .cooperative = true},
      stream, args);
}

using SmallSorter = TileSorter<256, 16, 16, 1>;

int64_t gather_words_of_16(const KernelArgs& args) {
  return GatherSpace<SmallSorter>::words(args.source.num_pairs, args.num_codes, kGatherBlocksOf16);
}

void launch_gather_of_16(const KernelArgs& args, bool plain, Stream stream) {
  gpu::launch(plain ? align_multi_phase_gather<SmallSorter, true> : align_multi_phase_gather<SmallSorter, false>,
              {.variant = "gather of 16",
               .num_blocks = kGatherBlocksOf16,
               .num_threads = SmallSorter::kThreads,
               .shared_bytes = gather_shared_bytes<SmallSorter>(args.num_codes),
               .cooperative = true},
              stream, args);
}

}  // namespace mixlane::test
