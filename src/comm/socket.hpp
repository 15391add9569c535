// Messages and file descriptors over connected stream sockets, every wait with a deadline.
#pragma once

#include <chrono>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mixlane {

using Clock = std::chrono::steady_clock;

// Owns a file descriptor.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(other.release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();
  int get() const { return fd_; }
  int release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

enum class IoResult { done, closed, timed_out };

// All sockets are non-blocking. A peer that went away gives `closed`, never a signal.
IoResult send_message(int socket, std::string_view body, Clock::time_point deadline);

// The receiving end of one socket: collects one message, however it is cut into pieces.
class MessageReader {
 public:
  // Takes what has arrived. timed_out = not complete yet.
  IoResult advance(int socket);
  std::string& body() { return body_; }

 private:
  std::string header_;
  std::string body_;
  size_t received_ = 0;
};

struct Received {
  IoResult result = IoResult::timed_out;
  std::string body;
};
// One message from each socket, waiting for all of them at once.
std::vector<Received> receive_messages(std::span<const int> sockets, Clock::time_point deadline);

IoResult send_descriptor(int socket, int descriptor, Clock::time_point deadline);
IoResult receive_descriptor(int socket, Descriptor& descriptor, Clock::time_point deadline);

// Milliseconds until `deadline` for poll(), rounded up, at least 0.
int poll_timeout_ms(Clock::time_point deadline);

}  // namespace mixlane
