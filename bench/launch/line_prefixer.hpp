// Passes a rank's stderr on, line by line, saying whose it is.
#pragma once

#include <string>

namespace mixlane::bench {

// Reads from a pipe that does not block and writes whole lines to this process's stderr.
class LinePrefixer {
 public:
  LinePrefixer(int fd, std::string prefix) : fd_(fd), prefix_(std::move(prefix)) {}
  ~LinePrefixer();
  LinePrefixer(LinePrefixer&& other) noexcept;
  LinePrefixer(const LinePrefixer&) = delete;
  LinePrefixer& operator=(const LinePrefixer&) = delete;

  int fd() const { return fd_; }
  // Forwards what there is. false at the end of the stream, after which fd() is -1.
  bool forward();

 private:
  void write_lines(bool with_rest);

  int fd_;
  std::string prefix_;
  std::string pending_;
};

}  // namespace mixlane::bench
