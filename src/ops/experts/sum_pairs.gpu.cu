// Sums per row of what the experts made of its pairs. A wave takes an octet per lane of one row; the loads of up to four
// pairs are on their way at once, so that memory alone sets the pace.
#include "gpu/launch.hpp"
#include "gpu/numeric.cuh"
#include "ops/experts/launchers.hpp"

namespace mixlane::experts_gpu {
namespace {

using HardwareWave = gpu::Wave<gpu::kHardwareWave>;
constexpr uint32_t kThreads = 256;
constexpr uint32_t kWavesPerBlock = kThreads / gpu::kHardwareWave;
constexpr uint32_t kBlocksPerMultiprocessor = 5;
constexpr uint32_t kPieceValues = gpu::kHardwareWave * gpu::kOctet;  // of a row, that a wave takes

// A wave's pairs of one row that are the experts', in ascending k.
struct PairList {
  uint32_t slot[gpu::kHardwareWave];
  float weight[gpu::kHardwareWave];
};

// Of pairs [first, first + kHardwareWave) of a row; returns how many.
__device__ inline uint32_t list_pairs(const SumPairsArgs& args, uint32_t row, uint32_t first, uint32_t first_slot,
                                      uint32_t num_slots, PairList& list) {
  const uint32_t k = first + HardwareWave::lane();
  uint32_t slot = ~0u;
  float weight = 1.0f;
  if (k < args.num_topk) {
    slot = static_cast<uint32_t>(args.pair_slots[int64_t{row} * args.num_topk + k]) - first_slot;
    if (args.weights.data) weight = args.weights.data[row * args.weights.stride + k];
  }
  const bool here = slot < num_slots;
  const auto all = HardwareWave::ballot(here);
  HardwareWave::sync();
  if (here) {
    const int at = HardwareWave::count(all & HardwareWave::lanes_below());
    list.slot[at] = first_slot + slot;
    list.weight[at] = weight;
  }
  HardwareWave::sync();
  return static_cast<uint32_t>(HardwareWave::count(all));
}

// Adds kCount pairs of the list to a lane's octet. Without conditions: all loads are issued before the first is used.
template <uint32_t kCount>
__device__ void add_pairs(const PairList& list, uint32_t first, const Rows<const std::byte>& pair_rows, uint32_t column,
                          float (&sums)[gpu::kOctet]) {
  gpu::Packet packets[kCount];
#pragma unroll
  for (uint32_t i = 0; i < kCount; ++i)
    packets[i] = gpu::load_streaming_packet(pair_rows.data + list.slot[first + i] * pair_rows.stride + int64_t{column} * 2);
#pragma unroll
  for (uint32_t i = 0; i < kCount; ++i) {
    const float weight = list.weight[first + i];
#pragma unroll
    for (int w = 0; w < gpu::kOctet / 2; ++w) {
      sums[2 * w] += weight * gpu::bf16_to_f32(packets[i].words[w]);
      sums[2 * w + 1] += weight * __uint_as_float(packets[i].words[w] & 0xffff0000u);
    }
  }
}

template <DType kOutput>
__device__ void store_sums(const SumPairsArgs& args, uint32_t row, uint32_t column, const float (&sums)[gpu::kOctet]) {
  gpu::Octet<kOutput> octet;
#pragma unroll
  for (int i = 0; i < gpu::kOctet; i += 2) octet.set_pair(i, sums[i], sums[i + 1]);
  constexpr int64_t kBytes = kOutput == DType::f32 ? 4 : 2;
  gpu::store_octet(args.output.data + row * args.output.stride + column * kBytes, octet, gpu::kOctet, args.packets);
}

// Values [column, column + 8) of a row, by each lane.
__device__ inline void sum_octet(const SumPairsArgs& args, uint32_t row, uint32_t column, uint32_t first_slot,
                                 uint32_t num_slots, PairList& list) {
  const bool inside = column < args.hidden;
  const uint32_t from = inside ? column : 0;
  float sums[gpu::kOctet] = {};
  for (uint32_t first = 0; first < args.num_topk; first += gpu::kHardwareWave) {
    const uint32_t count = list_pairs(args, row, first, first_slot, num_slots, list);
    uint32_t at = 0;
    for (; at + 4 <= count; at += 4) add_pairs<4>(list, at, args.pair_rows, from, sums);
    if (count & 2) add_pairs<2>(list, at, args.pair_rows, from, sums);
    if (count & 1) add_pairs<1>(list, count - 1, args.pair_rows, from, sums);
  }
  if (!inside) return;
  if (args.output_f32)
    store_sums<DType::f32>(args, row, column, sums);
  else
    store_sums<DType::bf16>(args, row, column, sums);
}

__global__ void __launch_bounds__(kThreads, kBlocksPerMultiprocessor)
    experts_sum_pairs(const MIXLANE_GRID_CONSTANT SumPairsArgs args, const gpu::Divider by_pieces) {
  __shared__ PairList lists[kWavesPerBlock];
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
      sum_octet(args, segment * args.rows_per_segment + row, column, first_slot, num_slots,
                lists[HardwareWave::index_in_block()]);
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
