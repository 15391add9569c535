// A kernel that reads received rows as they come, for tests.
#pragma once

#include "gpu/runtime.hpp"
#include "mixlane/dispatch.hpp"

namespace mixlane::test {

// Of each source; in device memory.
struct Consumed {
  uint32_t num_rows;
  uint32_t num_blocks;
  uint32_t num_missed;  // blocks that did not come, or the number of them
  uint64_t first_ns;    // when its first row was there, and its last one: a clock of the device
  uint64_t last_ns;
};

// One block per source: waits for each block of rows and takes every row's checksum, at [source * capacity + row] of `sums`.
void launch_consumer(const ReceivedRows& received, uint32_t* sums, Consumed* consumed, Stream stream);

// What a word adds to a row's checksum. `index`: in the row, payload, then ids, then weights.
constexpr uint32_t weighed(uint32_t word, uint32_t index) { return word * (2 * index + 1); }

}  // namespace mixlane::test
