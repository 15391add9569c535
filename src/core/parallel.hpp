// Loops over the CPU threads of one rank.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace mixlane {

// Calls body(begin, end) on disjoint ranges that cover [0, count), on up to num_threads threads, each range at least
// `grain` long. One range on the calling thread if that is all there is. The body must not throw.
template <class Body>
void parallel_ranges(int num_threads, int64_t count, int64_t grain, Body&& body) {
  const int64_t parts = std::clamp<int64_t>(count / std::max<int64_t>(grain, 1), 1, num_threads);
  if (parts == 1) {
    if (count > 0) body(int64_t{0}, count);
    return;
  }
#pragma omp parallel for num_threads(static_cast <int>(parts)) schedule(static)
  for (int64_t part = 0; part < parts; ++part) body(count * part / parts, count * (part + 1) / parts);
}

}  // namespace mixlane
