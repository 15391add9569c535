// Files of tuned tables: docs/tuning.md describes the fields.
#pragma once

#include <filesystem>

#include "core/error.hpp"
#include "core/tuned_table.hpp"

namespace mixlane {

// Throws bad_format naming `file_name`, the field, its value and what is allowed.
TunedTable parse_tuned(std::string_view json, std::string_view file_name);
TunedTable read_tuned(const std::filesystem::path& file);
// What parse_tuned() takes; a line per entry, entries in the order of their keys, times in that
// of their names.
std::string tuned_json(const TunedTable& table);
// "align.sm_90-132.json"
std::string tuned_file_name(const TunedTable& table);

// `into` with the entries of `fresh`. A key that both have: the old entry stays if the choice is the same; else the new one
// takes its place if `replace`, and otherwise config_mismatch is thrown with every such key and both choices.
// Throws config_mismatch as well if stage, machine or fields differ. Neither has ranges: split_ranges().
TunedTable merge_tuned(TunedTable into, const TunedTable& fresh, bool replace);

// Every table of a folder; they must agree.
std::vector<TunedTable> read_tuned_folder(const std::filesystem::path& folder);

}  // namespace mixlane
