// How much memory this process can still have.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace mixlane {

// Free bytes by /proc/meminfo and by every cgroup (v1 or v2) above this process; the smallest counts. Page cache that the
// kernel would give back counts as free. INT64_MAX if nothing can be read.
int64_t free_memory_bytes();

// The text of an out_of_memory error if `bytes` for `what` do not fit, empty if they do.
std::string memory_shortage(int64_t bytes, std::string_view what);

}  // namespace mixlane
