// A tensor of the device under test, in as many copies as a cold sample has calls.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <vector>

#include "gpu/runtime.hpp"

namespace mixlane::bench {

class DeviceTensor {
 public:
  DeviceTensor() = default;
  // Zeros, or in every copy what lies at `values` on the host.
  DeviceTensor(Device device, DType dtype, std::initializer_list<int64_t> shape, int num_sets, const void* values = nullptr);

  TensorView view(int set) const;
  // Of one copy.
  int64_t bytes() const { return bytes_; }
  // Bytes that no stage writes by accident, in stream order.
  void poison(Stream stream, int set) const;
  // Waits for the stream.
  std::vector<std::byte> fetch(Stream stream, int set) const;

 private:
  TensorView first_;
  int64_t bytes_ = 0;
  int64_t stride_ = 0;
  gpu::Buffer buffer_;
};

}  // namespace mixlane::bench
