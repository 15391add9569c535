// Files that are read by mapping parts of them, and files that appear whole or not at all.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <span>

#include "core/error.hpp"

namespace mixlane {

// Read-only memory of a part of a file; unmapped at its end. The file must not shrink meanwhile.
class MappedRange {
 public:
  MappedRange() = default;
  MappedRange(MappedRange&& other) noexcept;
  MappedRange& operator=(MappedRange&& other) noexcept;
  ~MappedRange();

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  friend class InputFile;
  void* pages_ = nullptr;
  size_t num_page_bytes_ = 0;
  std::span<const std::byte> bytes_;
};

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
  // [offset, offset + into.size()) must lie in the file.
  void read(int64_t offset, std::span<std::byte> into) const;
  // Maps the pages of [offset, offset + bytes) and no others.
  MappedRange map(int64_t offset, int64_t bytes) const;

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
