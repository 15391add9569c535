// What a call must move and compute at least: the benchmark divides it by the machine's peaks to get the speed of light.
#pragma once

#include <cstdint>

namespace mixlane {

// Every byte once, however often an implementation touches it; workspace is not counted.
struct Cost {
  int64_t bytes_read = 0;
  int64_t bytes_written = 0;
  int64_t flops = 0;
  int64_t fp8_flops = 0;  // of these, products of e4m3
  int64_t bytes() const { return bytes_read + bytes_written; }
};

}  // namespace mixlane
