#include "core/arena.hpp"

#include <cstdlib>

#include "core/error.hpp"

namespace mixlane {

Arena::Arena(Device device) : device_(device) {
  if (device.type != DeviceType::cpu)
    fail(ErrorCode::unsupported, "this build has no {} backend; use a cpu device", name(device.type));
}

Arena::~Arena() { std::free(memory_); }

void Arena::reserve(int64_t bytes) {
  if (used_ + bytes <= capacity_) return;
  if (used_ != 0)
    fail(ErrorCode::internal, "arena: {} more bytes wanted while {} of {} are taken; reserve the sum first", bytes, used_,
         capacity_);
  const int64_t wanted = rounded(bytes);
  void* memory = std::aligned_alloc(kAlignment, static_cast<size_t>(wanted));
  if (!memory) fail(ErrorCode::out_of_memory, "no {} bytes of workspace; lower the number of tokens", wanted);
  std::free(memory_);
  memory_ = static_cast<std::byte*>(memory);
  capacity_ = wanted;
}

void* Arena::take(int64_t bytes) {
  const int64_t size = rounded(bytes);
  reserve(size);
  void* block = memory_ + used_;
  used_ += size;
  return block;
}

}  // namespace mixlane
