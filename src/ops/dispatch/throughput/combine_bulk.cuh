// combine.throughput: how a block's waves and its shared memory are divided.
#pragma once

#include "gpu/ptx/bulk_copy.cuh"
#include "ops/dispatch/latency/combine.cuh"
#include "ops/dispatch/throughput/ring.cuh"

namespace mixlane::exchange_gpu::bulk_combine {

// What the waves of a block do.
constexpr uint32_t kAddingWaves = 14;  // 7168 values are twice their octets
constexpr uint32_t kAddingThreads = kAddingWaves * kWave;
constexpr uint32_t kLookWave = kAddingWaves;
constexpr uint32_t kFetchWave = kLookWave + 1;
constexpr uint32_t kLoadWave = kFetchWave + 1;
constexpr uint32_t kStoreWave = kLoadWave + 1;
constexpr uint32_t kFlagWave = kStoreWave + 1;
constexpr uint32_t kThreads = (kFlagWave + 1) * kWave;

constexpr int64_t kSharedBytes = 210 * 1024;
constexpr int64_t kPushBytes = 90 * 1024;  // for rows on their way to their owners, of which two must fit
constexpr uint32_t kMaxRows = 14;
constexpr uint32_t kMinPieces = 4, kMaxPieces = 8;
constexpr uint32_t kMaxTokens = 4;               // taken at once
constexpr uint32_t kGroupsOfBlock = 16;          // of tokens, at least
constexpr uint32_t kTaken = 2;                   // groups of rows that are being pushed
constexpr uint32_t kManyRows = 64;               // of a block: the call has few multiprocessors
constexpr uint32_t kBehind = 1, kBehindFew = 4;  // rows whose stores are under way while an older one's complete
constexpr uint32_t kTogether = 16;               // rows flagged at once, towards the end of a call fewer
constexpr uint32_t kFlags = 32;                  // rows that are stored, but not yet flagged
constexpr uint32_t kFound = 16;                  // tokens whose partial sums have come, but are not yet fetched
constexpr uint32_t kNoPiece = ~0u;

// How shared memory is divided.
struct Rings {
  uint32_t row_bytes;
  uint32_t num_rows;     // on their way to their owners
  uint32_t num_parts;    // what is added up at once is a part of a token's rows
  uint32_t piece_bytes;  // most of one rank's part
  uint32_t num_pieces;   // parts of tokens, of all ranks
};

// The partial sums of `count` ranks, piece_bytes apart.
struct Piece {
  uint32_t token;
  uint32_t part;
  uint32_t count;
};

// A token whose partial sums have come: where each rank's lies, null if there is none.
struct Found {
  const std::byte* from[kMaxRanks];
  uint32_t token;
};

struct BulkShared {
  uint64_t row_full[kMaxRows];
  uint64_t row_empty[kMaxRows];
  uint64_t taken_full[kTaken];
  uint64_t taken_empty[kTaken];
  uint64_t piece_full[kMaxPieces];
  uint64_t piece_empty[kMaxPieces];
  Piece piece[kMaxPieces];
  Found found[kFound];
  uint32_t num_found;  // tokens
  uint32_t num_fetched;
  bool all_found;
  uint32_t taken[kTaken];  // groups of rows
  uint32_t* flag[kFlags];  // of rows that have been stored
  Arrivals arrivals;       // of rows
  uint32_t masked;
};

__device__ inline bool leads() { return HardwareWave::lane() == 0; }

// Consecutive things that are taken in groups by whoever is free: multiprocessors have different shares of the link.
struct Groups {
  uint32_t total;
  uint32_t size;  // of a group
  uint32_t count;
  __device__ Groups(uint32_t num, uint32_t group) : total(num), size(group), count((num + group - 1) / group) {}
  __device__ uint32_t begin(uint32_t group) const { return group * size; }
  __device__ uint32_t end(uint32_t group) const { return min((group + 1) * size, total); }
  // The next one after the first, which is blockIdx.x; lane 0's answer.
  __device__ static uint32_t take(uint32_t* counter) {
    uint32_t group = 0;
    if (leads()) group = gridDim.x + atomicAdd(counter, 1u);
    return group;
  }
};

}  // namespace mixlane::exchange_gpu::bulk_combine
