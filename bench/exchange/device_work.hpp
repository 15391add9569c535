// The kernels that time an exchange, and those that the baselines need beside NCCL's. No formatting library here: nvcc
// stumbles over it.
#pragma once

#include <cstdint>

#include "mixlane/core.hpp"

namespace mixlane::bench {

inline constexpr int kMaxExchangeRanks = 8;

// Notes the device's time in ns once everything before it on the stream has ended.
void launch_mark(uint64_t* to, Stream stream);

// Where ranks meet on their devices: each has a word per rank in memory that all others write.
struct DeviceGate {
  uint32_t* words[kMaxExchangeRanks] = {};  // [num_ranks] in each rank's part
  uint32_t* passes = nullptr;               // this rank's own count of them
  int rank = 0;
  int num_ranks = 0;
  uint64_t limit_ns = 0;  // goes on without the others after that long
};
// Waits until all ranks have come, then notes the time.
void launch_gate(const DeviceGate& gate, uint64_t* to, Stream stream);

// Row i of `to` is row index[i] of `from`; rows of `bytes`, a multiple of 16, without gaps.
struct GatherRows {
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  const int32_t* index = nullptr;
  int32_t num_rows = 0;
  int64_t bytes = 0;
};
void launch_gather_rows(const GatherRows& args, Stream stream);

// Row t of `to` is the sum, in f32 and in rank order, of the bf16 rows index[t * num_ranks + r] of `from`; -1: none.
struct AddRows {
  const uint16_t* from = nullptr;
  uint16_t* to = nullptr;
  const int32_t* index = nullptr;
  int32_t num_rows = 0;
  int32_t num_ranks = 0;
  int64_t hidden = 0;  // a multiple of 8
};
void launch_add_rows(const AddRows& args, Stream stream);

}  // namespace mixlane::bench
