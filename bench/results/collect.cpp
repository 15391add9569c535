#include "results/collect.hpp"

#include <algorithm>
#include <numeric>

#include "core/error.hpp"

namespace mixlane::bench {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> result_paths(const fs::path& folder) {
  std::vector<fs::path> paths;
  std::error_code error;
  auto entry = fs::recursive_directory_iterator(folder, fs::directory_options::skip_permission_denied, error);
  for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    std::error_code ignored;
    if (entry->is_directory(ignored)) {
      if (entry->path().filename().string().starts_with("traces_")) entry.disable_recursion_pending();
    } else if (entry->path().extension() == ".json" && entry->is_regular_file(ignored)) {
      paths.push_back(entry->path());
    }
  }
  if (error) fail(ErrorCode::io_error, "can't list {}: {}", folder.string(), error.message());
  std::sort(paths.begin(), paths.end());
  return paths;
}

template <class T>
std::vector<T> permuted(std::vector<T>& values, const std::vector<size_t>& order) {
  std::vector<T> result;
  for (const size_t i : order) result.push_back(std::move(values[i]));
  return result;
}

void sort_by_stamp(Collection& collection) {
  std::vector<size_t> order(collection.files.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return collection.files[a].stamp < collection.files[b].stamp; });
  collection.files = permuted(collection.files, order);
  collection.names = permuted(collection.names, order);
}

}  // namespace

Collection collect_results(const fs::path& path) {
  std::error_code error;
  const bool is_folder = fs::is_directory(path, error);
  if (!is_folder && !fs::exists(path, error))
    fail(ErrorCode::io_error, "{}: no such file or folder; name a result file or a folder of runs", path.string());
  Collection collection;
  for (const fs::path& file : is_folder ? result_paths(path) : std::vector<fs::path>{path}) try {
      collection.files.push_back(read_result_file(file));
      collection.names.push_back(file.string());
    } catch (const Error& failure) {
      collection.warnings.push_back(fmt::format("skipped: {}", failure.what()));
    }
  sort_by_stamp(collection);
  return collection;
}

}  // namespace mixlane::bench
