// The launchers that the device files define. No formatting library here: nvcc stumbles over it.
#pragma once

#include "mixlane/core.hpp"
#include "ops/experts/mma/args.hpp"
#include "ops/experts/wgmma/args.hpp"

namespace mixlane::experts_gpu {

void launch_scale_rows(const ScaleRowsArgs& args, uint32_t num_pairs, bool overlap, Stream stream);

void launch_sum_pairs(const SumPairsArgs& args, int num_multiprocessors, bool overlap, Stream stream);

// One product of experts.mma.
void launch_mma(const MmaArgs& args, int num_multiprocessors, bool overlap, Stream stream);

// experts.wgmma on a device of so many multiprocessors.
void launch_wgmma_bf16(const WgmmaLaunch& args, int num_multiprocessors, Stream stream);
void launch_wgmma_e2m1(const WgmmaLaunch& args, int num_multiprocessors, Stream stream);
void launch_wgmma_e2m1_e4m3(const WgmmaLaunch& args, int num_multiprocessors, Stream stream);
void launch_wgmma_e4m3(const WgmmaLaunch& args, bool channels, int num_multiprocessors, Stream stream);

}  // namespace mixlane::experts_gpu
