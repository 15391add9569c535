// Whole text files in and out.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace mixlane::bench {

// Throws io_error naming the path and the system's reason.
std::string read_text_file(const std::filesystem::path& path);

// Makes the folders on the way, writes beside the target and renames: readers see the old or the new file, never half of
// one. Throws io_error naming the path and the system's reason; nothing is left behind then.
void write_text_file(const std::filesystem::path& path, std::string_view text);

// What --json FILE does: `target` is a path, or "-" for standard output.
void write_output(const std::string& target, std::string_view text);

}  // namespace mixlane::bench
