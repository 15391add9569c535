// The launchers that the device files define. No formatting library here: nvcc stumbles over it.
#pragma once

#include "mixlane/align.hpp"
#include "ops/align/device_args.hpp"

namespace mixlane::align_gpu {

// What every variant gets; multi_phase's memory is still to be added.
KernelArgs make_args(const AlignArgs& args);

// `plain`: contiguous i32 ids, no expert map, at most one segment.
int max_none_pairs();
void launch_none(const KernelArgs& args, bool plain, Stream stream);

int max_oneshot_pairs();
void launch_oneshot(const KernelArgs& args, bool plain, Stream stream);

int max_cluster_pairs();
bool has_cluster(Device device);
void launch_cluster(const KernelArgs& args, bool plain, Stream stream);

// Words of workspace that the call needs on a device of so many multiprocessors.
int64_t multi_phase_workspace_words(const KernelArgs& args, Device device);
void launch_multi_phase(const KernelArgs& args, bool plain, Device device, Stream stream);

// multi_phase's kernel for many pairs: whether it is the one for these.
bool takes_many(const KernelArgs& args, Device device);
int64_t many_workspace_words(const KernelArgs& args, Device device);
void launch_many(const KernelArgs& args, bool plain, Device device, Stream stream);

int64_t radix_workspace_words(const KernelArgs& args, Device device);
void launch_radix(const KernelArgs& args, bool plain, Device device, Stream stream);

}  // namespace mixlane::align_gpu
