// Steps of the set-up that may fail on one rank: all ranks end then, and one of them says why.
#pragma once

#include <exception>

#include "mixlane/comm.hpp"

namespace mixlane::bench {

// Ends a rank whose peer has failed and reports it.
class PeerFailed : public std::exception {
 public:
  const char* what() const noexcept override { return "another rank failed"; }
};

// Collective. Runs `step`; if it throws on some ranks, the lowest of them throws that error and all others PeerFailed.
template <class Step>
void together(Communicator& comm, Step&& step) {
  std::exception_ptr problem;
  try {
    step();
  } catch (...) {
    problem = std::current_exception();
  }
  const std::vector<std::string> failed = comm.all_gather(problem ? "failed" : "");
  for (int r = 0; r < comm.num_ranks(); ++r) {
    if (failed[r].empty()) continue;
    if (r == comm.rank()) std::rethrow_exception(problem);
    throw PeerFailed();
  }
}

}  // namespace mixlane::bench
