// The launchers of the copy_engine variants' kernels. No formatting library here: nvcc stumbles over it.
#pragma once

#include "ops/dispatch/copy_engine/args.hpp"
#include "ops/dispatch/gpu/launchers.hpp"

namespace mixlane::exchange_gpu {

void load_copy_kernels(CombineWire wire);

// Blocks of a kernel that moves rows: as many as fill the GPU, or few, so that copies beside it are not slowed down.
enum class Pace : uint8_t { alone, beside_copies };

// Before all others: the records of the first `num_slots` slots of all other ranks.
void launch_copy_first(const DispatchKernelArgs& args, const CopyStage& stage, int64_t num_slots, const Budget& budget,
                       Stream stream);
// Which token has which slot; before those that follow.
void launch_copy_route(const DispatchKernelArgs& args, const CopyStage& stage, Stream stream);
// Records of a range of slots: those for all other ranks, or this rank's own.
enum class Packed : uint8_t { others, own };
void launch_copy_pack(const DispatchKernelArgs& args, const CopyStage& stage, Packed which, RowRange slots, Pace pace,
                      const Budget& budget, Stream stream);
void launch_copy_report(const DispatchKernelArgs& args, Stream stream);
void launch_copy_receive(const DispatchKernelArgs& args, const CopyStage& stage, Stream stream);

// Partial rows in a range of slots of all owners, those below `num_copied` for copies; that from 0 on first.
void launch_copy_make(const CombineKernelArgs& args, CombineWire wire, const CopyStage& stage, RowRange slots,
                      int64_t num_copied, Pace pace, const Budget& budget, Stream stream);
// Flags of a range of slots, behind its copies.
void launch_copy_flag(const Exchange& exchange, RowRange slots, Stream stream);
// `closes` the call: the last one.
void launch_copy_add(const CombineKernelArgs& args, CombineWire wire, RowRange tokens, Pace pace, bool closes,
                     const Budget& budget, Stream stream);

}  // namespace mixlane::exchange_gpu
