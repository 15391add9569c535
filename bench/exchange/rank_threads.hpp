// One thread per rank of a group that lives in this process.
#pragma once

#include <functional>

namespace mixlane::bench {

// Calls body(rank) on a thread for each rank, waits for all of them, and rethrows what the lowest rank threw.
void for_each_rank(int num_ranks, const std::function<void(int rank)>& body);

}  // namespace mixlane::bench
