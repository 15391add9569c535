// Workspace that is reserved once and handed out by moving a pointer: nothing is allocated on the path of a call.
#pragma once

#include <memory>
#include <vector>

#include "core/memory.hpp"

namespace mixlane {

// Memory of one device. Blocks live until the Scope in which they were taken ends. Growing is allowed only while nothing
// is taken, so pointers never move; a call that needs more than was reserved grows it at its first use.
// On a GPU a Scope ends before its kernels ran: the work of one Context must be ordered, by one stream or by events.
// Streams that run concurrently have a Context each.
class Arena {
 public:
  explicit Arena(Device device);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // Gives back at its end everything taken since its start.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), mark_(arena.used_) {}
    ~Scope() { arena_.used_ = mark_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    int64_t mark_;
  };

  // Makes at least `bytes` available in one piece beyond what is taken. Throws internal if that would move taken blocks,
  // out_of_memory with the sizes if the device has no more.
  void reserve(int64_t bytes);
  // `bytes` aligned to 256; undefined content. Grows like reserve().
  void* take(int64_t bytes);
  template <class T>
  T* take_as(int64_t count) {
    return static_cast<T*>(take(count * static_cast<int64_t>(sizeof(T))));
  }
  int64_t capacity_bytes() const { return capacity_; }
  // kZerosBytes that are zero between calls: state such as a barrier's counter, which every user leaves as it was.
  void* zeros();
  static constexpr int64_t kZerosBytes = 16384;

  static constexpr int64_t kAlignment = 256;
  // What take(bytes) consumes: for sums that size a reserve().
  static constexpr int64_t rounded(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

 private:
  Device device_;
  std::unique_ptr<DeviceMemory> source_;
  std::byte* memory_ = nullptr;
  void* zeros_ = nullptr;
  std::vector<void*> retired_;  // GPU: earlier blocks
  int64_t capacity_ = 0;
  int64_t used_ = 0;
};

}  // namespace mixlane
