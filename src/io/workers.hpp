// Threads that share out a list of items and may fail.
#pragma once

#include <atomic>
#include <exception>
#include <mutex>

#include "core/parallel.hpp"

namespace mixlane {

class WorkQueue {
 public:
  explicit WorkQueue(int64_t count) : count_(count) {}
  // The next item; -1 if all are taken or a worker failed.
  int64_t next() {
    if (failed_.load(std::memory_order_relaxed)) return -1;
    const int64_t item = next_.fetch_add(1, std::memory_order_relaxed);
    return item < count_ ? item : -1;
  }
  // Keeps the first failure.
  void fail(std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::move(error);
    failed_ = true;
  }
  void rethrow_failure() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  int64_t count_;
  std::atomic<int64_t> next_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::exception_ptr error_;
};

// Calls body(worker, queue) for workers 0 to num_workers - 1, side by side as far as there are threads; each takes items
// until there are none. Throws what the first of them threw, once all have ended.
template <class Body>
void run_workers(int num_workers, int64_t num_items, Body&& body) {
  WorkQueue queue(num_items);
  parallel_ranges(num_workers, num_workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      try {
        body(static_cast<int>(worker), queue);
      } catch (...) {
        queue.fail(std::current_exception());
      }
    }
  });
  queue.rethrow_failure();
}

}  // namespace mixlane
