#include "io/file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace mixlane {
namespace {

[[noreturn]] void fail_with_errno(const std::filesystem::path& file, std::string_view action) {
  const int error = errno;
  fail(ErrorCode::io_error, "{}: can't {}: {}", file.string(), action, std::strerror(error));
}

}  // namespace

MappedRange::MappedRange(MappedRange&& other) noexcept { *this = std::move(other); }

MappedRange& MappedRange::operator=(MappedRange&& other) noexcept {
  std::swap(pages_, other.pages_);
  std::swap(num_page_bytes_, other.num_page_bytes_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedRange::~MappedRange() {
  if (pages_ != nullptr) ::munmap(pages_, num_page_bytes_);
}

InputFile::InputFile(const std::filesystem::path& file) : path_(file) {
  descriptor_ = ::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) fail_with_errno(file, "open");
  struct stat status {};
  const bool has_status = ::fstat(descriptor_, &status) == 0;
  if (!has_status || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    fail(ErrorCode::io_error, "{}: not a regular file", file.string());
  }
  size_ = status.st_size;
}

InputFile::~InputFile() { ::close(descriptor_); }

void InputFile::read(int64_t offset, std::span<std::byte> into) const {
  while (!into.empty()) {
    const ssize_t got = ::pread(descriptor_, into.data(), into.size(), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_with_errno(path_, "read");
    if (got == 0) fail(ErrorCode::io_error, "{}: ends at byte {}, it had {} when opened", path_.string(), offset, size_);
    offset += got;
    into = into.subspan(static_cast<size_t>(got));
  }
}

MappedRange InputFile::map(int64_t offset, int64_t bytes) const {
  MappedRange range;
  if (bytes == 0) return range;
  if (offset < 0 || bytes < 0 || offset > size_ - bytes)
    fail(ErrorCode::internal, "{}: bytes {} + {} lie outside of its {}", path_.string(), offset, bytes, size_);
  const int64_t into_page = offset % ::sysconf(_SC_PAGESIZE);
  range.num_page_bytes_ = static_cast<size_t>(bytes + into_page);
  void* pages = ::mmap(nullptr, range.num_page_bytes_, PROT_READ, MAP_PRIVATE, descriptor_, offset - into_page);
  if (pages == MAP_FAILED) fail_with_errno(path_, fmt::format("map {} bytes at {}", bytes, offset));
  range.pages_ = pages;
  range.bytes_ = {static_cast<const std::byte*>(pages) + into_page, static_cast<size_t>(bytes)};
  return range;
}

void write_whole_file(const std::filesystem::path& file, const std::function<void(const ByteSink&)>& write) {
  const std::string temporary = fmt::format("{}.{}.tmp", file.string(), ::getpid());
  const int descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) fail_with_errno(file, "write");
  const auto put = [&](std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t done = ::write(descriptor, bytes.data(), bytes.size());
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) fail_with_errno(file, "write");
      bytes = bytes.subspan(static_cast<size_t>(done));
    }
  };
  try {
    write(put);
    if (::rename(temporary.c_str(), file.c_str()) != 0) fail_with_errno(file, "write");
  } catch (...) {
    ::close(descriptor);
    ::unlink(temporary.c_str());
    throw;
  }
  ::close(descriptor);
}

}  // namespace mixlane
