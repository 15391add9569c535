// Where the data files that come with the library lie.
#pragma once

#include <filesystem>
#include <string_view>
#include <vector>

namespace mixlane {

// The installed folder `name` ("models", "tuned") if there is one beside this library, else the source tree's, for programs
// that run from the build folder.
std::filesystem::path data_folder(std::string_view name);

// The user's folder, if one is given, and then the one that comes with the library, which a user's folder replaces where the
// program was copied without it.
std::vector<std::filesystem::path> search_folders(const std::filesystem::path& own, const std::filesystem::path& shipped);

// Its *.json files, or those of any other folder, sorted. Throws io_error: "<what> <folder>: <reason>; <advice>".
std::vector<std::filesystem::path> json_files(const std::filesystem::path& folder, std::string_view what,
                                              std::string_view advice);

}  // namespace mixlane
