// Align kernels on hardware whose atomics are not in lane order, made up: ranks of equal codes come out reversed.
#pragma once

#include "ops/align/device_args.hpp"

namespace mixlane::test {

// Whether the kernels of this build rank by atomics at all.
bool ranks_by_atomics();
void launch_disordered_oneshot(const align_gpu::KernelArgs& args, Stream stream);
void launch_disordered_cluster(const align_gpu::KernelArgs& args, Stream stream);  // up to 1024 pairs
int64_t disordered_multi_phase_words(const align_gpu::KernelArgs& args);
void launch_disordered_multi_phase(const align_gpu::KernelArgs& args, bool plain, Stream stream);
// With the workspace of the one above.
void launch_disordered_many(const align_gpu::KernelArgs& args, bool plain, Stream stream);

}  // namespace mixlane::test
