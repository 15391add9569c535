#include "core/tuned_table.hpp"

#include <algorithm>
#include <map>

#include "core/error.hpp"

namespace mixlane {
namespace {

// The sizes that an entry is for, among those of keys that are otherwise the same.
struct Claim {
  int64_t from, to;
  const TunedTable* table;
  const TunedEntry* entry;
};

// By whose tables they are and by the key without its size, fields ordered by name: tables may list them in any order.
using Claims = std::map<std::vector<std::string>, std::vector<Claim>>;

// `size_field`: the last field of this owner's first table.
void claim(const TunedTable& table, const TunedEntry& entry, const std::string& owner, std::string_view size_field,
           Claims& claims) {
  if (entry.from > 0 && table.fields.back() != size_field)
    fail(ErrorCode::bad_format, "{}: {}: another table's last field is {}; list the fields in the same order", table.file,
         key_text(table, entry), size_field);
  Claim made{0, 0, &table, &entry};
  std::vector<std::string> rest;
  for (size_t i = 0; i < table.fields.size(); ++i) {
    const auto* size = std::get_if<int64_t>(&entry.key[i]);
    if (size && table.fields[i] == size_field) {
      made.from = entry.from > 0 ? entry.from : *size;
      made.to = *size;
    } else {
      rest.push_back(table.fields[i] + "=" + to_string(entry.key[i]));
    }
  }
  std::sort(rest.begin(), rest.end());
  rest.push_back(owner);
  claims[std::move(rest)].push_back(made);
}

void require_no_conflict(std::vector<Claim>& claims) {
  std::stable_sort(claims.begin(), claims.end(), [](const Claim& a, const Claim& b) { return a.from < b.from; });
  const Claim* widest = nullptr;  // of those that start before
  for (const Claim& claim : claims) {
    const bool overlap = widest && claim.from <= widest->to;
    if (overlap && (widest->entry->choice != claim.entry->choice || widest->table == claim.table))
      fail(ErrorCode::bad_format, "{} on {}, {}: {} says {}, {} says {}; keep one", claim.table->stage,
           to_string(claim.table->machine), key_text(*claim.table, *claim.entry), widest->table->file, widest->entry->choice,
           claim.table->file, claim.entry->choice);
    if (!widest || claim.to > widest->to) widest = &claim;
  }
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
    text += fmt::format("{}{}={}{}", i == 0 ? "" : " ", table.fields[i],
                        entry.from > 0 && i + 1 == table.fields.size() ? fmt::format("{} to ", entry.from) : "",
                        to_string(entry.key[i]));
  return text;
}

void require_agreement(std::span<const TunedTable> tables) {
  std::map<std::string, std::string_view> size_fields;
  Claims claims;
  for (const TunedTable& table : tables) {
    const std::string owner =
        fmt::format("{} {} {}", table.stage, table.machine.architecture, table.machine.num_multiprocessors);
    const std::string_view size_field = size_fields.emplace(owner, table.fields.back()).first->second;
    for (const TunedEntry& entry : table.entries) claim(table, entry, owner, size_field, claims);
  }
  for (auto& [key, of_key] : claims) require_no_conflict(of_key);
}

}  // namespace mixlane
