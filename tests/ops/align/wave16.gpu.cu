#include "gpu/launch.hpp"
#include "ops/align/multi_phase_many.cuh"
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

int64_t many_words_of_16(const KernelArgs& args) { return Matrix::words(args.num_codes, kManyBlocksOf16); }

template <class Sorter>
void launch_sorter(const KernelArgs& args, Stream stream) {
  constexpr uint32_t kRows = 19;
  gpu::launch(align_multi_phase_many<Sorter>,
              {.variant = "many of 16",
               .num_blocks = kManyBlocksOf16,
               .num_threads = Sorter::kThreads,
               .shared_bytes = many_shared_bytes<Sorter>(args.num_codes, kRows),
               .cooperative = true},
              stream, args, kRows);
}

void launch_many_of_16(const KernelArgs& args, bool plain, Stream stream) {
  if (plain && !args.source.bucket)
    launch_sorter<RegisterTile<256, 36, 16, true, uint32_t>>(args, stream);
  else
    launch_sorter<RegisterTile<256, 36, 16, false, uint16_t>>(args, stream);
}

}  // namespace mixlane::test
