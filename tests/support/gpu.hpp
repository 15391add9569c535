// Tests that need a GPU: skipped with the reason where there is none.
#pragma once

#include <gtest/gtest.h>

#include <cstring>

#include "gpu/runtime.hpp"

namespace mixlane::test {

inline Device gpu_device() { return {gpu::kDeviceType, 0}; }

class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    if (gpu::num_devices(&why) == 0) GTEST_SKIP() << why;
  }
};

// A host buffer's twin on the device, at an offset that may spoil its alignment.
class Twin {
 public:
  Twin(void* host, int64_t bytes, int64_t offset)
      : host_(host), bytes_(bytes), offset_(offset), memory_(gpu_device(), bytes + offset + 16) {}
  void* data() const { return memory_.as<char>() + offset_; }
  void send(Stream stream) const { gpu::copy(data(), host_, bytes_, stream); }
  void fetch(Stream stream) const { gpu::copy(host_, data(), bytes_, stream); }

 private:
  void* host_;
  int64_t bytes_;
  int64_t offset_;
  gpu::Buffer memory_;
};

}  // namespace mixlane::test
