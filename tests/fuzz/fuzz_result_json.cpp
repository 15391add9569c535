// The reader of result files: any bytes give a file that can be written and read again, or a bad_format error.
#include <cstdint>
#include <cstdlib>

#include "mixlane/core.hpp"
#include "results/record.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mixlane;
  bench::ResultFile file;
  try {
    file = bench::result_file_from_text({reinterpret_cast<const char*>(data), size}, "fuzz.json");
  } catch (const Error& error) {
    if (error.code() != ErrorCode::bad_format) std::abort();
    return 0;
  }
  const std::string text = bench::to_text(file);
  if (bench::to_text(bench::result_file_from_text(text, "again.json")) != text) std::abort();
  return 0;
}
