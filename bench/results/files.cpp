#include "results/files.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>

#include "core/error.hpp"

namespace mixlane::bench {
namespace {

std::string reason(int error) { return std::generic_category().message(error); }

// A descriptor that is closed on every way out.
class OpenFile {
 public:
  OpenFile(const std::filesystem::path& path, int flags) : descriptor_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {}
  ~OpenFile() { close(); }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  int descriptor() const { return descriptor_; }
  bool close() {
    const int descriptor = descriptor_;
    descriptor_ = -1;
    return descriptor < 0 || ::close(descriptor) == 0;
  }

 private:
  int descriptor_;
};

// 0 or the errno of the step that failed.
int write_all(const std::filesystem::path& path, std::string_view text) {
  OpenFile file(path, O_WRONLY | O_CREAT | O_TRUNC);
  if (file.descriptor() < 0) return errno;
  while (!text.empty()) {
    const ssize_t written = ::write(file.descriptor(), text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return errno;
    text.remove_prefix(static_cast<size_t>(written));
  }
  // Without it a crash of the machine after the rename could leave an empty file under the final name.
  if (::fsync(file.descriptor()) != 0 && errno != EINVAL) return errno;
  return file.close() ? 0 : errno;
}

}  // namespace

std::string read_text_file(const std::filesystem::path& path) {
  OpenFile file(path, O_RDONLY);
  if (file.descriptor() < 0) fail(ErrorCode::io_error, "can't open {}: {}", path.string(), reason(errno));
  std::string text;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t count = ::read(file.descriptor(), buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(ErrorCode::io_error, "can't read {}: {}", path.string(), reason(errno));
    if (count == 0) return text;
    text.append(buffer, static_cast<size_t>(count));
  }
}

void write_text_file(const std::filesystem::path& path, std::string_view text) {
  if (path.has_parent_path()) {
    std::error_code error;
    std::filesystem::create_directories(path.parent_path(), error);
    if (error) fail(ErrorCode::io_error, "can't make the folder {}: {}", path.parent_path().string(), error.message());
  }
  std::filesystem::path temporary = path;
  temporary += fmt::format(".{}.tmp", ::getpid());
  int error = write_all(temporary, text);
  if (error == 0 && ::rename(temporary.c_str(), path.c_str()) != 0) error = errno;
  if (error != 0) {
    ::unlink(temporary.c_str());
    fail(ErrorCode::io_error, "can't write {}: {}", path.string(), reason(error));
  }
}

void write_output(const std::string& target, std::string_view text) {
  if (target != "-") return write_text_file(target, text);
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0)
    fail(ErrorCode::io_error, "can't write to standard output: {}", reason(errno));
}

}  // namespace mixlane::bench
