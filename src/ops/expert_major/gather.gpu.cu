// expert_major.gather: a wave per slot copies a row in packets of 16 bytes; pads become zeros.
#include "gpu/device.hpp"
#include "gpu/launch.hpp"
#include "ops/expert_major/launchers.hpp"

namespace mixlane::expert_major_gpu {
namespace {

using HardwareWave = gpu::Wave<gpu::kHardwareWave>;
constexpr uint32_t kThreads = 256;
constexpr uint32_t kWavesPerBlock = kThreads / gpu::kHardwareWave;
constexpr uint32_t kBlocksPerMultiprocessor = 8;

template <class Packet>
__device__ void copy_row(const RowPair& rows, uint32_t row, bool is_pad, uint32_t slot) {
  constexpr uint32_t kTogether = 4;  // packets of a lane on their way at once
  const auto* const from = reinterpret_cast<const Packet*>(rows.from + row * rows.from_stride);
  auto* const to = reinterpret_cast<Packet*>(rows.to + slot * rows.to_stride);
  const uint32_t count = rows.row_bytes / sizeof(Packet), step = gpu::kHardwareWave;
  for (uint32_t first = HardwareWave::lane(); first < count; first += kTogether * step) {
    Packet held[kTogether] = {};
#pragma unroll
    for (uint32_t i = 0; i < kTogether; ++i)
      if (!is_pad && first + i * step < count) held[i] = from[first + i * step];
#pragma unroll
    for (uint32_t i = 0; i < kTogether; ++i)
      if (first + i * step < count) to[first + i * step] = held[i];
  }
}

__global__ void __launch_bounds__(kThreads) expert_major_gather(const MIXLANE_GRID_CONSTANT GatherArgs args) {
  const uint32_t num_slots = min(static_cast<uint32_t>(max(args.num_padded[0], 0)), args.capacity);
  const uint32_t num_waves = gridDim.x * kWavesPerBlock;
  for (uint32_t slot = blockIdx.x * kWavesPerBlock + HardwareWave::index_in_block(); slot < num_slots; slot += num_waves) {
    const auto row = static_cast<uint32_t>(args.sorted_rows[slot]);
    const bool is_pad = row >= args.num_rows;
    copy_row<uint4>(args.rows, is_pad ? 0 : row, is_pad, slot);
    if (args.scales.row_bytes != 0) copy_row<uint32_t>(args.scales, is_pad ? 0 : row, is_pad, slot);
  }
}

}  // namespace

void launch_gather(const GatherArgs& args, int num_multiprocessors, Stream stream) {
  const uint32_t most = static_cast<uint32_t>(num_multiprocessors) * kBlocksPerMultiprocessor;
  const uint32_t wanted = (args.capacity + kWavesPerBlock - 1) / kWavesPerBlock;
  gpu::launch(expert_major_gather,
              {.variant = "expert_major.gather", .num_blocks = wanted < most ? wanted : most, .num_threads = kThreads},
              stream, args);
}

}  // namespace mixlane::expert_major_gpu
