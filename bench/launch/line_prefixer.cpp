#include "launch/line_prefixer.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "core/format.hpp"

namespace mixlane::bench {

LinePrefixer::~LinePrefixer() {
  if (fd_ < 0) return;
  forward();
  if (fd_ < 0) return;
  write_lines(true);
  close(fd_);
}

LinePrefixer::LinePrefixer(LinePrefixer&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), prefix_(std::move(other.prefix_)), pending_(std::move(other.pending_)) {}

bool LinePrefixer::forward() {
  char buffer[4096];
  for (;;) {
    const ssize_t got = read(fd_, buffer, sizeof(buffer));
    if (got > 0) {
      pending_.append(buffer, static_cast<size_t>(got));
      write_lines(false);
    } else if (got < 0 && errno == EINTR) {
      continue;
    } else if (got < 0 && errno == EAGAIN) {
      return true;
    } else {
      write_lines(true);
      close(std::exchange(fd_, -1));
      return false;
    }
  }
}

void LinePrefixer::write_lines(bool with_rest) {
  std::string out;
  size_t begin = 0;
  for (size_t end; (end = pending_.find('\n', begin)) != std::string::npos; begin = end + 1)
    out += fmt::format("{}{}\n", prefix_, std::string_view(pending_).substr(begin, end - begin));
  pending_.erase(0, begin);
  if (with_rest && !pending_.empty()) out += fmt::format("{}{}\n", prefix_, std::exchange(pending_, {}));
  if (!out.empty()) fmt::print(stderr, "{}", out);
}

}  // namespace mixlane::bench
