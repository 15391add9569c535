// Kernels that pass messages, read the clock and overlap each other.
#pragma once

#include "mixlane/core.hpp"

namespace mixlane::test {

inline constexpr int kMessageWords = 64;

// Words that the two blocks of launch_messages share, zeroed before.
struct Mailbox {
  uint32_t payload[kMessageWords];
  uint32_t flag, acknowledged, wrong, started;
  uint64_t begin_ns[2], end_ns[2];  // of each block
};

// One block writes `rounds` messages and releases a flag, the other acquires it, counts the wrong words and acknowledges.
// They give up after a second. Flags of the system's scope or of the device's.
void launch_messages(bool system_scope, int rounds, Mailbox* mailbox, Stream stream);

// Keeps the device busy for so long by its own clock.
void launch_spin(uint64_t ns, Stream stream);

// Times of the two kernels of launch_overlapping, by the device's clock.
struct OverlapTimes {
  uint64_t first_end_ns, second_begin_ns;
  uint32_t word, seen;
};

// A kernel that lets the next one start, spins for `ns` and writes `word`; one that may start early, waits for the first
// and reads it.
void launch_overlapping(uint64_t ns, uint32_t word, bool overlap, OverlapTimes* times, Stream stream);

}  // namespace mixlane::test
