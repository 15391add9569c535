// Device memory that other GPUs and other processes reach: allocation, export, import, and the links between GPUs.
#pragma once

#include <string>

#include "gpu/runtime.hpp"

namespace mixlane::gpu {

// Where a device sits on its host ("0000:19:00.0"): equal for two indices, of one process or two, that mean the same GPU.
std::string bus_id(int index);

// Lets kernels of `from` read and write memory of `to`. "" or why that is impossible.
std::string connect_peer(Device from, Device to);

// Zeroed device memory that peers write while kernels of its own device look at it.
class SharedBuffer {
 public:
  // `what` names it in errors: out_of_memory or unsupported.
  SharedBuffer(Device device, int64_t bytes, std::string_view what);
  ~SharedBuffer();
  SharedBuffer(const SharedBuffer&) = delete;
  SharedBuffer& operator=(const SharedBuffer&) = delete;

  std::byte* data() const { return data_; }
  Device device() const { return device_; }
  // What another process of this host opens it by: bytes without a meaning of their own.
  std::string handle() const;

 private:
  Device device_;
  std::byte* data_ = nullptr;
};

// Another process's SharedBuffer, mapped for `device`.
class ImportedBuffer {
 public:
  ImportedBuffer(Device device, const std::string& handle);
  ~ImportedBuffer();
  ImportedBuffer(const ImportedBuffer&) = delete;
  ImportedBuffer& operator=(const ImportedBuffer&) = delete;

  std::byte* data() const { return data_; }

 private:
  Device device_;
  std::byte* data_ = nullptr;
};

}  // namespace mixlane::gpu
