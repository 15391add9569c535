// Symmetric memory whose parts lie on GPUs.
#pragma once

#include "mixlane/comm.hpp"

namespace mixlane {

// Where the ranks of a group live: a peer's memory is reached by its address, or by a handle.
enum class RankHome { threads_of_one_process, processes };

// Communicator::allocate for a GPU. Collective; fails on every rank alike, in the words of the first that failed.
std::shared_ptr<SymmetricMemory> allocate_on_gpu(Communicator& comm, RankHome home, int64_t bytes_per_rank,
                                                 std::string_view what, Device device);

}  // namespace mixlane
