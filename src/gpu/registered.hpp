// Host memory on large pages that the copy engine reads: an order of magnitude cheaper to take and give back than
// PinnedBuffer, whose pages the runtime makes one by one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace mixlane::gpu {

class RegisteredBuffer {
 public:
  // Touched by `num_threads`, then registered. Throws out_of_memory with the size.
  RegisteredBuffer(int64_t bytes, int num_threads);
  std::byte* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(std::byte* memory) const noexcept;
  };
  // Registered memory must not be freed before it is unregistered.
  struct Unregister {
    void operator()(std::byte* memory) const noexcept;
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::unique_ptr<std::byte, Unregister> registered_;  // goes first
};

}  // namespace mixlane::gpu
