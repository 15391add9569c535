// A table of tuned choices as it is in a file: docs/tuning.md. io/tuned.hpp reads and writes them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace mixlane {

// The kind of machine that a choice holds for.
struct TunedMachine {
  std::string architecture;  // "sm_90", "gfx942"
  int num_multiprocessors = 0;
  friend bool operator==(const TunedMachine&, const TunedMachine&) = default;
};
std::string to_string(const TunedMachine& machine);  // "sm_90 with 132 multiprocessors"

// A field of a key is a whole number or a word.
using TuneValue = std::variant<int64_t, std::string>;
std::string to_string(const TuneValue& value);

struct TunedEntry {
  std::vector<TuneValue> key;                               // a value per field of the table
  int64_t from = 0;                                         // above 0: for all sizes from here on to the key's last value
  std::string choice;                                       // the id of a variant, or another name that the stage knows
  int run = 0;                                              // which of the table's runs measured it
  std::vector<std::pair<std::string, double>> measured_us;  // of each candidate
};

// Where choices come from: one call of `mixlane tune`.
struct TuningRun {
  std::string date, gpu, driver, commit, command;
};

inline constexpr size_t kMaxTuneFields = 6;

struct TunedTable {
  std::string file;  // for messages
  std::string stage;
  TunedMachine machine;
  std::vector<std::string> fields;  // 1 to kMaxTuneFields names
  std::vector<TuningRun> runs;
  std::vector<TunedEntry> entries;
};

// "experts=256 topk=8 ids=i32 tokens=64", "... tokens=5 to 64"
std::string key_text(const TunedTable& table, const TunedEntry& entry);

// Throws bad_format with both files and both choices if two entries for one key, or for a part of a range, differ, or are
// of one table.
void require_agreement(std::span<const TunedTable> tables);

}  // namespace mixlane
