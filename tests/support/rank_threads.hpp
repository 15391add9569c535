// Ranks as threads of the test.
#pragma once

#include <exception>
#include <functional>
#include <thread>
#include <vector>

#include "mixlane/comm.hpp"

namespace mixlane::test {

// An error that only says that another rank is gone.
inline bool is_consequence(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    return e.code() == ErrorCode::peer_timeout;
  } catch (...) {
    return false;
  }
}

// Runs body(communicator) on one thread per rank and, after all have ended, rethrows what went wrong first: an error that
// is not the consequence of another rank's, if there is one.
inline void run_ranks(int num_ranks, const std::function<void(std::shared_ptr<Communicator>)>& body,
                      std::chrono::milliseconds deadline = std::chrono::seconds(20)) {
  const auto group = make_thread_group(num_ranks);
  std::vector<std::exception_ptr> errors(num_ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < num_ranks; ++rank)
    threads.emplace_back([&, rank] {
      try {
        group[rank]->set_deadline(deadline);
        body(group[rank]);
      } catch (...) {
        errors[rank] = std::current_exception();
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors)
    if (error && !is_consequence(error)) std::rethrow_exception(error);
  for (const std::exception_ptr& error : errors)
    if (error) std::rethrow_exception(error);
}

}  // namespace mixlane::test
