#include "io/data_folder.hpp"

#include <dlfcn.h>

#include <algorithm>

#include "core/error.hpp"

namespace mixlane {

// MIXLANE_DATA_FROM_LIBRARY: the installed data relative to the library's folder. MIXLANE_SOURCE_DATA: the source tree.
std::filesystem::path data_folder(std::string_view name) {
  Dl_info library{};
  if (dladdr(reinterpret_cast<const void*>(&data_folder), &library) != 0 && library.dli_fname != nullptr) {
    std::error_code error;
    const auto file = std::filesystem::canonical(library.dli_fname, error);
    const auto installed = (file.parent_path() / MIXLANE_DATA_FROM_LIBRARY / name).lexically_normal();
    if (!error && std::filesystem::is_directory(installed, error)) return installed;
  }
  return std::filesystem::path(MIXLANE_SOURCE_DATA) / name;
}

std::vector<std::filesystem::path> search_folders(const std::filesystem::path& own, const std::filesystem::path& shipped) {
  if (own.empty()) return {shipped};
  std::error_code error;
  if (!std::filesystem::is_directory(shipped, error)) return {own};
  return {own, shipped};
}

std::vector<std::filesystem::path> json_files(const std::filesystem::path& folder, std::string_view what,
                                              std::string_view advice) {
  std::vector<std::filesystem::path> files;
  std::error_code error;
  std::filesystem::directory_iterator entries(folder, error);
  if (error) fail(ErrorCode::io_error, "{} {}: {}; {}", what, folder.string(), error.message(), advice);
  for (const auto& entry : entries)
    if (entry.path().extension() == ".json") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace mixlane
