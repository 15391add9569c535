// The GPU runtime as the rest of the code sees it: devices, streams, events, memory and graphs, without a vendor header.
// Every call is checked; a failure throws Error with the call, what it was for, and the runtime's own words.
#pragma once

#include <functional>
#include <string>
#include <utility>

#include "mixlane/core.hpp"

namespace mixlane::gpu {

struct DeviceProperties {
  std::string name;
  std::string architecture;  // "sm_90", "gfx942"
  int num_multiprocessors = 0;
  int wave_size = 0;
  int64_t memory_bytes = 0;
  int64_t l2_bytes = 0;
  int64_t max_shared_bytes = 0;  // of one block
  int driver_version = 0;
  int runtime_version = 0;
};

// The backend of this build.
#if defined(MIXLANE_HIP)
inline constexpr DeviceType kDeviceType = DeviceType::hip;
#else
inline constexpr DeviceType kDeviceType = DeviceType::cuda;
#endif
// 0 where there is no usable GPU; then `why` (if given) says what is missing.
int num_devices(std::string* why = nullptr);
// Throws unsupported where there is no such device.
DeviceProperties properties(int index);
// Cheap queries for launchers.
int num_multiprocessors(int index);
int compute_capability(int index);  // 90 for sm_90; the gfx number's decimal digits on AMD
int64_t max_shared_bytes(int index);

// Makes `device` the current one of this thread, and the former one again at its end.
class DeviceGuard {
 public:
  explicit DeviceGuard(Device device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int former_ = 0;
  bool changed_ = false;
};

// A move-only handle with its deleter.
template <class Tag>
class Handle {
 public:
  Handle() = default;
  explicit Handle(void* handle) : handle_(handle) {}
  ~Handle() { Tag::release(handle_); }
  Handle(Handle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  void* get() const { return handle_; }

 private:
  void* handle_ = nullptr;
};

class OwnedStream {
 public:
  explicit OwnedStream(Device device);
  Stream get() const { return {device_, handle_.get()}; }

 private:
  struct Tag {
    static void release(void* handle) noexcept;
  };
  Device device_;
  Handle<Tag> handle_;
};

class Event {
 public:
  Event();
  void record(Stream stream);
  void wait() const;
  // What comes on `stream` waits for the event; the host does not.
  void hold(Stream stream) const;
  // Between two recorded events, the later one waited for.
  static double elapsed_us(const Event& from, const Event& to);

 private:
  struct Tag {
    static void release(void* handle) noexcept;
  };
  Handle<Tag> handle_;
};

// Device memory, zeroed at first.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device device, int64_t bytes);
  void* data() const { return handle_.get(); }
  template <class T>
  T* as() const {
    return static_cast<T*>(handle_.get());
  }
  int64_t bytes() const { return bytes_; }

 private:
  struct Tag {
    static void release(void* handle) noexcept;
  };
  Handle<Tag> handle_;
  int64_t bytes_ = 0;
};

// Host memory that the device reads and writes in place.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(int64_t bytes);
  template <class T>
  T* as() const {
    return static_cast<T*>(handle_.get());
  }

 private:
  struct Tag {
    static void release(void* handle) noexcept;
  };
  Handle<Tag> handle_;
};

void synchronize(Stream stream);
bool is_capturing(Stream stream);
// All work of all streams.
void synchronize_device(Device device);
// In stream order, between any two of host and device.
void copy(void* to, const void* from, int64_t bytes, Stream stream);
void fill(void* to, uint8_t byte, int64_t bytes, Stream stream);

// Work captured once, replayed by one call.
class Graph {
 public:
  // Runs `work` with a stream that records instead of executing.
  static Graph capture(Device device, const std::function<void(Stream)>& work);
  void launch(Stream stream) const;

 private:
  struct Tag {
    static void release(void* handle) noexcept;
  };
  Handle<Tag> handle_;
};

}  // namespace mixlane::gpu
