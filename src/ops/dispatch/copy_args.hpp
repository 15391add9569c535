// What the kernels of the copy_engine variants get beside the exchange, and how many rows go in one copy.
#pragma once

#include <algorithm>
#include <vector>

#include "ops/dispatch/device_args.hpp"

namespace mixlane::exchange_gpu {

// Memory of a rank's own beside the windows.
struct CopyStage {
  std::byte* records[kMaxRanks] = {};   // where records for each rank are put together; its own in the window
  std::byte* partials[kMaxRanks] = {};  // and partial rows for the other ranks, in the same memory
  int32_t* tokens = nullptr;            // [R][C]: token of each slot
  int32_t* counts = nullptr;            // [R]: rows for each rank
};

// Rows [begin, end) that one copy moves: few at first and at last, so that little is waited for before and behind the
// copies, many between.
struct RowRange {
  int64_t begin = 0;
  int64_t end = 0;
};
inline std::vector<RowRange> copy_ranges(int64_t num_rows) {
  constexpr int64_t kFirst = 256, kMost = 1024;
  std::vector<RowRange> ranges;
  int64_t size = kFirst;
  for (int64_t begin = 0; begin < num_rows;) {
    const int64_t left = num_rows - begin;
    const int64_t next = left <= kFirst + kFirst / 2 ? left : std::min(size, std::max(left / 2, kFirst));
    ranges.push_back({begin, begin + next});
    begin += next;
    size = std::min(2 * size, kMost);
  }
  return ranges;
}

}  // namespace mixlane::exchange_gpu
