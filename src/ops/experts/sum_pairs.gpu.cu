// Sums per row of what the experts made of its pairs. A wave takes an octet per lane of one row; all of a row's pairs are on
// their way at once, so that memory alone sets the pace.
#include "gpu/launch.hpp"
#include "gpu/numeric.cuh"
#include "ops/experts/launchers.hpp"

namespace mixlane::experts_gpu {
namespace {

using HardwareWave = gpu::Wave<gpu::kHardwareWave>;
using PairOctet = gpu::Octet<DType::bf16>;
constexpr uint32_t kThreads = 256;
constexpr uint32_t kWavesPerBlock = kThreads / gpu::kHardwareWave;
constexpr uint32_t kBlocksPerMultiprocessor = 4;
constexpr uint32_t kTogether = 8;                                    // pairs whose octets a lane holds
constexpr uint32_t kPieceValues = gpu::kHardwareWave * gpu::kOctet;  // of a row, that a wave takes

__device__ inline PairOctet load_pair_octet(const std::byte* from) {
  const gpu::Packet packet = gpu::load_streaming_packet(from);
  return {{packet.words[0], packet.words[1], packet.words[2], packet.words[3]}};
}

template <DType kOutput>
__device__ void store_sums(const SumPairsArgs& args, uint32_t row, uint32_t column, const float (&sums)[gpu::kOctet]) {
  gpu::Octet<kOutput> octet;
#pragma unroll
  for (int i = 0; i < gpu::kOctet; i += 2) octet.set_pair(i, sums[i], sums[i + 1]);
  constexpr int64_t kBytes = kOutput == DType::f32 ? 4 : 2;
  gpu::store_octet(args.output.data + row * args.output.stride + column * kBytes, octet, gpu::kOctet, args.packets);
}

// Values [column, column + 8) of a row, by each lane; `slots` are the experts'.
__device__ inline void sum_octet(const SumPairsArgs& args, uint32_t row, uint32_t column, uint32_t first_slot,
                                 uint32_t num_slots) {
  const bool inside = column < args.hidden;
  const std::byte* const from = args.pair_rows.data + int64_t{column} * 2;
  const uint32_t lane = HardwareWave::lane();
  float sums[gpu::kOctet] = {};
  for (uint32_t first = 0; first < args.num_topk; first += kTogether) {
    uint32_t own_slot = ~0u;
    float own_weight = 1.0f;
    if (lane < kTogether && first + lane < args.num_topk) {
      own_slot = static_cast<uint32_t>(args.pair_slots[int64_t{row} * args.num_topk + first + lane]) - first_slot;
      if (args.weights.data) own_weight = args.weights.data[row * args.weights.stride + first + lane];
    }
    PairOctet octets[kTogether];
#pragma unroll
    for (uint32_t i = 0; i < kTogether; ++i) {
      const uint32_t slot = HardwareWave::shuffle(own_slot, static_cast<int>(i));
      if (slot < num_slots && inside) octets[i] = load_pair_octet(from + int64_t{first_slot + slot} * args.pair_rows.stride);
    }
#pragma unroll
    for (uint32_t i = 0; i < kTogether; ++i) {
      const float weight = HardwareWave::shuffle(own_weight, static_cast<int>(i));
      if (HardwareWave::shuffle(own_slot, static_cast<int>(i)) >= num_slots) continue;
#pragma unroll
      for (int v = 0; v < gpu::kOctet; ++v) sums[v] += weight * octets[i].value(v);
    }
  }
  if (!inside) return;
  if (args.output_f32)
    store_sums<DType::f32>(args, row, column, sums);
  else
    store_sums<DType::bf16>(args, row, column, sums);
}

__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    experts_sum_pairs(const MIXLANE_GRID_CONSTANT SumPairsArgs args, const gpu::Divider by_pieces) {
  gpu::wait_for_previous_kernel();
  gpu::allow_next_kernel();
  const auto first_slot = static_cast<uint32_t>(args.offsets[0]);
  const uint32_t num_slots = static_cast<uint32_t>(args.offsets[args.num_experts]) - first_slot;
  // Counted from the first piece of a segment's rows that count; the next segment's follow these.
  uint32_t piece = blockIdx.x * kWavesPerBlock + HardwareWave::index_in_block();
  for (uint32_t segment = 0; segment < args.num_segments; ++segment) {
    uint32_t num_rows = args.rows_per_segment;
    if (args.segment_rows) num_rows = min(static_cast<uint32_t>(max(args.segment_rows[segment], 0)), num_rows);
    const uint32_t num_pieces = num_rows * by_pieces.divisor;
    for (; piece < num_pieces; piece += gridDim.x * kWavesPerBlock) {
      const uint32_t row = gpu::divide(piece, by_pieces);
      const uint32_t column = (piece - row * by_pieces.divisor) * kPieceValues + HardwareWave::lane() * gpu::kOctet;
      sum_octet(args, segment * args.rows_per_segment + row, column, first_slot, num_slots);
    }
    piece -= num_pieces;
  }
}

}  // namespace

void launch_sum_pairs(const SumPairsArgs& args, int num_multiprocessors, bool overlap, Stream stream) {
  const uint32_t pieces = (args.hidden + kPieceValues - 1) / kPieceValues;  // of a row
  const uint32_t most = static_cast<uint32_t>(num_multiprocessors) * kBlocksPerMultiprocessor;
  const uint64_t wanted =
      (uint64_t{args.num_segments} * args.rows_per_segment * pieces + kWavesPerBlock - 1) / kWavesPerBlock;
  gpu::launch(experts_sum_pairs,
              {.variant = "experts.sum_pairs",
               .num_blocks = wanted < most ? static_cast<uint32_t>(wanted) : most,
               .num_threads = kThreads,
               .overlaps_previous = overlap},
              stream, args, gpu::Divider::by(pieces));
}

}  // namespace mixlane::experts_gpu
