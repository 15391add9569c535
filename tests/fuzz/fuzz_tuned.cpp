// The reader of tuned tables: any bytes give a table that the writer and the reader agree on, or a bad_format error.
#include <cstdint>
#include <cstdlib>

#include "io/tuned.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mixlane;
  TunedTable table;
  try {
    table = parse_tuned({reinterpret_cast<const char*>(data), size}, "fuzz.json");
  } catch (const Error& error) {
    if (error.code() != ErrorCode::bad_format) std::abort();
    return 0;
  }
  for (const TunedEntry& entry : table.entries)
    if (entry.key.size() != table.fields.size() || entry.run < 0 || entry.run >= static_cast<int>(table.runs.size()))
      std::abort();
  // Times are rounded once.
  const std::string once = tuned_json(table);
  if (tuned_json(parse_tuned(once, "once.json")) != once) std::abort();
  return 0;
}
