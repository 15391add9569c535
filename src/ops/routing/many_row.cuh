// What routing_warp_many (many.cuh) keeps of a token in shared memory.
#pragma once

#include "ops/routing/usual.cuh"

namespace mixlane::routing_gpu {

inline constexpr uint32_t kManyLanes = 8;
inline constexpr uint32_t kManySets = 4;  // of a lane
inline constexpr uint32_t kManyThreads = 128;

// A column and what it is chosen by.
struct alignas(8) Candidate {
  float choice;
  uint32_t column;

  // kDistinct: no two choices are equal.
  template <bool kDistinct>
  __device__ bool is_before(const Candidate& other) const {
    const bool is_larger = choice > other.choice;
    if constexpr (kDistinct) return is_larger;
    const bool is_equal = choice == other.choice;
    const bool is_lower = column < other.column;
    return is_larger | (is_equal & is_lower);  // without branches
  }
};
__device__ inline Candidate either(bool first, const Candidate& a, const Candidate& b) {
  return {first ? a.choice : b.choice, first ? a.column : b.column};
}

// A token's shared memory beside its row. Tokens beside each other read the same member at once, from different banks.
struct alignas(16) ManyScratch {
  static constexpr uint32_t kExtras = 26;
  Candidate extras[kExtras];  // candidates beside the best of each lane's set; -inf where there is no first or second

  __device__ void clear() { extras[gpu::Wave<kManyLanes>::lane()] = {kLowest, 0}; }
  __device__ void load_pair(uint32_t first, Candidate (&pair)[2]) const {
    const float4 two = reinterpret_cast<const float4*>(extras)[first / 2];
    pair[0] = {two.x, __float_as_uint(two.y)};
    pair[1] = {two.z, __float_as_uint(two.w)};
  }
};
static_assert(sizeof(ManyScratch) % 32 == 16);

// A token's row in shared memory. Where 16-byte chunks lie: eight lanes that write neighbouring ones, or each its own set's,
// never meet in a bank.
template <DType kType, int kRuns>
struct ManyRow {
  static constexpr uint32_t kColumns = 128 * kRuns;
  static constexpr uint32_t kSetColumns = kColumns / (kManyLanes * kManySets);
  static constexpr uint32_t kValueBytes = kType == DType::f32 ? 4 : 2;
  static constexpr uint32_t kBytes = kColumns * kValueBytes;
  static constexpr int kChunks = static_cast<int>(kBytes / 16 / kManyLanes);  // of a lane
  // What a set is loaded by.
  using Piece = std::conditional_t<kType == DType::f32 || kRuns % 2 == 0, uint4, uint2>;
  static constexpr uint32_t kPieces = kSetColumns * kValueBytes / sizeof(Piece);
  static constexpr uint32_t kPieceColumns = kSetColumns / kPieces;
  // Chunks of a set differ in the last bits of their places.
  static constexpr bool kWholeSets = sizeof(Piece) == 16 && (kPieces & (kPieces - 1)) == 0;
  std::byte* memory;

  __device__ static uint32_t place(uint32_t chunk) { return (chunk ^ (chunk / 8 & 7u)) * 16; }
  __device__ uint4& chunk(uint32_t index) const { return *reinterpret_cast<uint4*>(memory + place(index)); }
  // As the row lies in global memory, eight chunks at a time.
  __device__ uint4& chunk_of_all(int step) const {
    const uint32_t lane = gpu::Wave<kManyLanes>::lane() * 16;
    return *reinterpret_cast<uint4*>(memory + (lane ^ static_cast<uint32_t>(step % 8 * 16)) + step * 128);
  }
  // Of a lane that has an eighth of the row.
  __device__ uint4& own_chunk(int index) const {
    const uint32_t lane = gpu::Wave<kManyLanes>::lane();
    if constexpr (kChunks == 8)
      return *reinterpret_cast<uint4*>(memory + lane * 128 + (lane * 16 ^ static_cast<uint32_t>(index * 16)));
    return chunk(lane * kChunks + index);
  }
  // Of set `step` * kManyLanes + lane.
  __device__ Piece& own_piece(uint32_t step, uint32_t index) const {
    const uint32_t lane = gpu::Wave<kManyLanes>::lane();
    if constexpr (kWholeSets)
      return *reinterpret_cast<Piece*>(memory + (place(lane * kPieces) ^ (index ^ (step * kPieces & 7u)) * 16) +
                                       step * kPieces * 128);
    return piece((step * kManyLanes + lane) * kPieces + index);
  }

  // The columns of a set.
  __device__ void load_set(uint32_t set, float (&to)[kSetColumns]) const {
#pragma unroll
    for (uint32_t i = 0; i < kPieces; ++i) {
      if constexpr (kWholeSets)
        unpack(*reinterpret_cast<const Piece*>(memory + (place(set * kPieces) ^ i * 16)), to + i * kPieceColumns);
      else
        unpack(piece(set * kPieces + i), to + i * kPieceColumns);
    }
  }
  __device__ float of_set(uint32_t set, uint32_t index) const {
    if constexpr (kWholeSets) return value(memory + (place(set * kPieces) ^ index * kValueBytes));
    return column(set * kSetColumns + index);
  }
  // Four columns of a lane that has an eighth of the row.
  __device__ void load_own_run(int run, float* to) const {
    if constexpr (kType == DType::f32)
      unpack(own_chunk(run), to);
    else
      unpack(reinterpret_cast<const uint2*>(&own_chunk(run / 2))[run % 2], to);
  }
  __device__ float column(uint32_t index) const {
    constexpr uint32_t kPerChunk = 16 / kValueBytes;
    return value(memory + place(index / kPerChunk) + index % kPerChunk * kValueBytes);
  }

  __device__ static void unpack(const uint4& chunk, float* to) {
    if constexpr (kType == DType::f32) {
      to[0] = __uint_as_float(chunk.x);
      to[1] = __uint_as_float(chunk.y);
      to[2] = __uint_as_float(chunk.z);
      to[3] = __uint_as_float(chunk.w);
    } else {
      unpack(make_uint2(chunk.x, chunk.y), to);
      unpack(make_uint2(chunk.z, chunk.w), to + 4);
    }
  }
  __device__ static void unpack(const uint2& four, float* to) {
    to[0] = __uint_as_float(four.x << 16);
    to[1] = __uint_as_float(four.x & 0xffff0000u);
    to[2] = __uint_as_float(four.y << 16);
    to[3] = __uint_as_float(four.y & 0xffff0000u);
  }

 private:
  __device__ Piece& piece(uint32_t index) const {
    if constexpr (sizeof(Piece) == 16)
      return chunk(index);
    else
      return reinterpret_cast<uint2*>(&chunk(index / 2))[index % 2];
  }
  __device__ static float value(const std::byte* at) {
    if constexpr (kType == DType::f32) return *reinterpret_cast<const float*>(at);
    return __uint_as_float(static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(at)) << 16);
  }
};

// Shared memory of a token's row. Scores take the logits' place, or lie behind shorter ones. That of a wave's four tokens is
// enough for route_unusual() as well.
template <DType kType, int kRuns, bool kScored>
__host__ __device__ constexpr uint32_t many_row_bytes() {
  constexpr bool kBehind = kScored && kType != DType::f32;
  constexpr uint32_t kBytes = ManyRow<kType, kRuns>::kBytes + (kBehind ? ManyRow<DType::f32, kRuns>::kBytes : 0);
  constexpr uint32_t kUnusual = WaveMemory<32, 4 * kRuns>::kValueBytes + sizeof(Scratch);
  constexpr uint32_t kLeast = (kUnusual / 4 / 128 + 1) * 128;
  return kBytes > kLeast ? kBytes : kLeast;
}

template <DType kType, int kRuns, bool kScored>
__host__ __device__ constexpr uint32_t many_block_bytes() {
  constexpr uint32_t kBiasBytes = kScored ? ManyRow<DType::f32, kRuns>::kBytes : 0;
  return kManyThreads / kManyLanes * (many_row_bytes<kType, kRuns, kScored>() + sizeof(ManyScratch)) + kBiasBytes;
}

// Blocks of a multiprocessor (sm_90) at once; registers are rationed for them.
template <DType kType, int kRuns, bool kScored>
__host__ __device__ constexpr uint32_t many_resident_blocks() {
  constexpr uint32_t kByShared = 227 * 1024 / (many_block_bytes<kType, kRuns, kScored>() + 1024);
  constexpr uint32_t kByRegisters = kRuns <= 2 || !kScored ? 8 : 5;
  return kByShared < kByRegisters ? kByShared : kByRegisters;
}

}  // namespace mixlane::routing_gpu
