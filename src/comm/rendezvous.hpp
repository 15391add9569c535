// How the processes of one launch find each other on their host.
#pragma once

#include <vector>

#include "comm/socket.hpp"
#include "mixlane/comm.hpp"

namespace mixlane {

// Connects every rank with rank 0 through an abstract unix-domain socket, whose name is made from the user and the job:
// nothing appears in a file system, and the name is gone as soon as all have met or rank 0 ends, however it ends.
// Rank 0 gets one socket per rank (its own entry empty), the others get a single one. Throws peer_timeout naming the ranks
// that did not come, config_mismatch if a rank was started into a group of another size or twice.
std::vector<Descriptor> meet(const LaunchInfo& launch, std::chrono::milliseconds wait);

}  // namespace mixlane
