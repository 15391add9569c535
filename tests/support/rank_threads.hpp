// Ranks as threads of the test.
#pragma once

#include <exception>
#include <functional>
#include <thread>
#include <vector>

#include "mixlane/comm.hpp"

namespace mixlane::test {

// Runs body(communicator) on one thread per rank and rethrows the first rank's exception after all have ended.
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
    if (error) std::rethrow_exception(error);
}

}  // namespace mixlane::test
