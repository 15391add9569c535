#include "io/file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>

namespace mixlane {
namespace {

[[noreturn]] void fail_with_errno(const std::filesystem::path& file, std::string_view action) {
  const int error = errno;
  fail(ErrorCode::io_error, "{}: can't {}: {}", file.string(), action, std::strerror(error));
}

}  // namespace

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

int64_t InputFile::read_up_to(int64_t offset, std::span<iovec> parts) const {
  int64_t total = 0;
  while (!parts.empty()) {
    const int count = static_cast<int>(std::min<size_t>(parts.size(), IOV_MAX));
    const ssize_t got = ::preadv(descriptor_, parts.data(), count, offset + total);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_with_errno(path_, "read");
    total += got;
    auto left = static_cast<size_t>(got);
    while (!parts.empty() && left >= parts[0].iov_len) {
      left -= parts[0].iov_len;
      parts = parts.subspan(1);
    }
    if (got == 0) break;
    if (left == 0) continue;
    parts[0].iov_base = static_cast<std::byte*>(parts[0].iov_base) + left;
    parts[0].iov_len -= left;
  }
  return total;
}

void InputFile::read(int64_t offset, std::span<std::byte> into) const {
  iovec whole{into.data(), into.size()};
  const int64_t got = read_up_to(offset, {&whole, 1});
  if (got < static_cast<int64_t>(into.size()))
    fail(ErrorCode::io_error, "{}: ends at byte {}, it had {} when opened", path_.string(), offset + got, size_);
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
