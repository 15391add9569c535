// The align kernels of one block's worth of pairs with a logical wave of 16: nothing in them may assume 32.
#pragma once

#include "ops/align/device_args.hpp"

namespace mixlane::test {

// As their namesakes in ops/align.
void launch_none_of_16(const align_gpu::KernelArgs& args, bool plain, Stream stream);
inline constexpr int64_t kMaxOneshotPairsOf16 = 4096;
void launch_oneshot_of_16(const align_gpu::KernelArgs& args, bool plain, Stream stream);

// With workspace and barrier in `args`, any number of pairs.
inline constexpr uint32_t kRadixBlocksOf16 = 5;
int64_t radix_words_of_16(const align_gpu::KernelArgs& args);
void launch_radix_of_16(const align_gpu::KernelArgs& args, bool plain, Stream stream);

// The kernel of align.multi_phase for many pairs, with tiles of 4864 pairs; up to 1000 codes.
inline constexpr uint32_t kManyBlocksOf16 = 3;
int64_t many_words_of_16(const align_gpu::KernelArgs& args);
void launch_many_of_16(const align_gpu::KernelArgs& args, bool plain, Stream stream);

}  // namespace mixlane::test
