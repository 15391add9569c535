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
      {};                     // and partial rows for the other ranks, in the same memory; nullptr: as the caller has them
  int32_t* tokens = nullptr;  // [R][C]: token of each slot
  int32_t* counts = nullptr;  // [R]: rows for each rank
};

// Rows [begin, end) that one copy moves.
struct RowRange {
  int64_t begin = 0;
  int64_t end = 0;
};

// In few ranges, because each copy costs the link 2.5 to 5 us.
struct CopyPlan {
  int64_t first;   // rows of the first copy: few where they must be put together before the link is in use
  int64_t growth;  // from copy to copy: what goes by one is put together while the one before is under way
  bool few_last;   // less and less at the end, where what has come is added up while the next is under way
};
inline constexpr CopyPlan kPackedRecords{.first = 512, .growth = 2, .few_last = false};
inline constexpr CopyPlan kPackedPartials{.first = 256, .growth = 4, .few_last = true};
inline constexpr CopyPlan kPartialsInPlace{.first = int64_t{1} << 40, .growth = 1, .few_last = true};

inline std::vector<RowRange> copy_ranges(int64_t num_rows, const CopyPlan& plan) {
  constexpr int64_t kFewRows = 512;
  std::vector<RowRange> ranges;
  int64_t size = plan.first;
  for (int64_t begin = 0; begin < num_rows; size *= plan.growth) {
    const int64_t left = num_rows - begin;
    int64_t next = left <= 2 * size ? left : size;
    if (plan.few_last && left > kFewRows) next = std::min(size, left * 5 / 8);
    ranges.push_back({begin, begin + next});
    begin += next;
  }
  return ranges;
}

}  // namespace mixlane::exchange_gpu
