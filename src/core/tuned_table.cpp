#include "core/tuned_table.hpp"

#include <map>

#include "core/error.hpp"

namespace mixlane {
namespace {

// A key with its fields' names, ordered by name: tables may list the fields in any order.
std::map<std::string_view, std::string> named_key(const TunedTable& table, const TunedEntry& entry) {
  std::map<std::string_view, std::string> named;
  for (size_t i = 0; i < table.fields.size(); ++i) named.emplace(table.fields[i], to_string(entry.key[i]));
  return named;
}

}  // namespace

std::string to_string(const TunedMachine& machine) {
  return fmt::format("{} with {} multiprocessors", machine.architecture, machine.num_multiprocessors);
}

std::string to_string(const TuneValue& value) {
  if (const auto* number = std::get_if<int64_t>(&value)) return std::to_string(*number);
  return std::get<std::string>(value);
}

std::string key_text(const TunedTable& table, const TunedEntry& entry) {
  std::string text;
  for (size_t i = 0; i < table.fields.size(); ++i)
    text += fmt::format("{}{}={}", i == 0 ? "" : " ", table.fields[i], to_string(entry.key[i]));
  return text;
}

void require_agreement(std::span<const TunedTable> tables) {
  struct Place {
    const TunedTable* table;
    const TunedEntry* entry;
  };
  std::map<std::pair<std::string, std::map<std::string_view, std::string>>, Place> places;
  for (const TunedTable& table : tables)
    for (const TunedEntry& entry : table.entries) {
      const std::string owner =
          fmt::format("{} {} {}", table.stage, table.machine.architecture, table.machine.num_multiprocessors);
      const auto [found, is_new] = places.emplace(std::pair(owner, named_key(table, entry)), Place{&table, &entry});
      const Place& other = found->second;
      if (is_new || (other.entry->choice == entry.choice && other.table != &table)) continue;
      fail(ErrorCode::bad_format, "{} on {}, {}: {} says {}, {} says {}; keep one", table.stage, to_string(table.machine),
           key_text(table, entry), other.table->file, other.entry->choice, table.file, entry.choice);
    }
}

}  // namespace mixlane
