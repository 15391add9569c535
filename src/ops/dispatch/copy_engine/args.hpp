// What the kernels of the copy_engine variants get beside the exchange, and how many rows go in one copy.
#pragma once

#include <algorithm>
#include <vector>

#include "ops/dispatch/gpu/device_args.hpp"

namespace mixlane::exchange_gpu {

// Memory of a rank's own beside the windows.
struct CopyStage {
  std::byte* records[kMaxRanks] = {};  // where records for each rank are put together; its own in the window
  std::byte* partials[kMaxRanks] =
      {};  // and partial rows for the other ranks, in the same memory; nullptr: as the caller has them
  uint32_t* flags[kMaxRanks] = {};  // [C][kRowParts]: what follows partial rows
  int32_t* tokens = nullptr;        // [R][C]: token of each slot
  int32_t* counts = nullptr;        // [R]: rows for each rank
};

// Rows [begin, end) that one copy moves. Few ranges, because each copy costs the link 2.6 us; the first of `first` rows, of
// few where these must be put together before the link is in use, then four times as many each, which are put together while
// the others are copied; few at last again, so that little is left to do behind the copies.
struct RowRange {
  int64_t begin = 0;
  int64_t end = 0;
};
inline constexpr int64_t kFewRowsOfCopy = 256;
inline std::vector<RowRange> copy_ranges(int64_t num_rows, int64_t first = kFewRowsOfCopy) {
  std::vector<RowRange> ranges;
  int64_t size = first;
  for (int64_t begin = 0; begin < num_rows; size *= 4) {
    const int64_t left = num_rows - begin;
    const int64_t next = left <= (ranges.empty() ? 2 : 3) * kFewRowsOfCopy ? left : std::min(size, left * 3 / 4);
    ranges.push_back({begin, begin + next});
    begin += next;
  }
  return ranges;
}

}  // namespace mixlane::exchange_gpu
