// Files that are read in parts, and files that appear whole or not at all.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <filesystem>
#include <functional>
#include <span>

#include "core/error.hpp"

namespace mixlane {

// An open regular file of a known size.
class InputFile {
 public:
  // Throws io_error naming the file.
  explicit InputFile(const std::filesystem::path& file);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  int64_t size() const { return size_; }
  // [offset, offset + into.size()) must lie in the file; from several threads at once. Throws io_error naming the file.
  void read(int64_t offset, std::span<std::byte> into) const;
  // Fills the parts in order, which it changes, and says how much it got: less than they hold only if the file ends there.
  int64_t read_up_to(int64_t offset, std::span<iovec> parts) const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  int64_t size_ = 0;
};

// Where a writer puts bytes.
using ByteSink = std::function<void(std::span<const std::byte>)>;

// Writes `file` through a temporary beside it that is renamed at the end, so a reader never sees half of it. Throws
// io_error naming the file; nothing is left behind then.
void write_whole_file(const std::filesystem::path& file, const std::function<void(const ByteSink&)>& write);

}  // namespace mixlane
