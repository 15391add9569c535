#include "core/arena.hpp"

#include "core/error.hpp"

namespace mixlane {

Arena::Arena(Device device) : device_(device), source_(open_memory(device)) {}

Arena::~Arena() {
  for (void* block : retired_) source_->release(block);
  if (memory_) source_->release(memory_);
  if (zeros_) source_->release(zeros_);
}

void Arena::reserve(int64_t bytes) {
  if (used_ + bytes <= capacity_) return;
  if (used_ != 0)
    fail(ErrorCode::internal, "arena: {} more bytes wanted while {} of {} are taken; reserve the sum first", bytes, used_,
         capacity_);
  const int64_t wanted = rounded(bytes);
  if (device_.type == DeviceType::cpu) {
    void* memory = source_->allocate(wanted);
    if (memory_) source_->release(memory_);
    memory_ = static_cast<std::byte*>(memory);
  } else {
    // Kernels in flight and captured graphs may still use the old block: it stays until the arena goes.
    if (memory_) retired_.push_back(memory_);
    memory_ = nullptr;
    capacity_ = 0;
    memory_ = static_cast<std::byte*>(source_->allocate(wanted));
  }
  capacity_ = wanted;
}

void* Arena::take(int64_t bytes) {
  const int64_t size = rounded(bytes);
  reserve(size);
  void* block = memory_ + used_;
  used_ += size;
  return block;
}

void* Arena::zeros() {
  if (!zeros_) zeros_ = source_->allocate(kZerosBytes);
  return zeros_;
}

}  // namespace mixlane
