// The readers of safetensors headers and indices: any bytes give tensors that cover the file, or a bad_format error.
#include <cstdint>
#include <cstdlib>
#include <span>

#include "io/safetensors.hpp"

namespace {

using namespace mixlane;

template <class Body>
void expect_bad_format_at_worst(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    if (error.code() != ErrorCode::bad_format) std::abort();
  }
}

void check_cover(const SafetensorsHeader& header, int64_t header_bytes, int64_t file_bytes) {
  int64_t covered = header_bytes;
  for (const auto& [name, entry] : header) {
    if (entry.offset < header_bytes || entry.bytes < 0 || entry.offset + entry.bytes > file_bytes) std::abort();
    covered += entry.bytes;
  }
  if (covered != file_bytes) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto file_bytes = static_cast<int64_t>(size);
  expect_bad_format_at_worst([&] {
    const SafetensorsHeader header = parse_safetensors_header(bytes, file_bytes, "fuzz.safetensors");
    check_cover(header, safetensors_header_bytes(bytes, file_bytes, "fuzz.safetensors"), file_bytes);
  });
  expect_bad_format_at_worst([&] { parse_safetensors_index({reinterpret_cast<const char*>(data), size}, "fuzz.json"); });
  return 0;
}
