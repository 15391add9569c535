// The reader of npy headers: any bytes give an array that is the rest of the file, or a bad_format error.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "io/npy.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mixlane;
  const auto file_bytes = static_cast<int64_t>(size);
  const auto start = std::as_bytes(std::span(data, static_cast<size_t>(std::min(file_bytes, kMaxNpyHeaderBytes))));
  try {
    const NpyHeader header = parse_npy_header(start, file_bytes, "fuzz.npy");
    if (header.data_offset + header.data_bytes != file_bytes || header.shape.size() > kMaxDims) std::abort();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::bad_format) std::abort();
  }
  return 0;
}
