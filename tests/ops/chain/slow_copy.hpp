// A neighbour that shows whether a kernel waits for it: it lets the next kernel start at once, dawdles, and only then works.
#pragma once

#include "mixlane/core.hpp"

namespace mixlane::test {

// Copies after `delay_ns`. Waits itself for all that came before.
void launch_slow_copy(void* to, const void* from, int64_t bytes, int64_t delay_ns, Stream stream);

}  // namespace mixlane::test
