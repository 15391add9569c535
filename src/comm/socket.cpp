#include "comm/socket.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>

namespace mixlane {
namespace {

// What precedes a message: its length. The limit catches a peer that speaks something else.
using Length = uint64_t;
constexpr Length kMaxLength = Length{1} << 32;

IoResult wait_for(int socket, short events, Clock::time_point deadline) {
  while (true) {
    pollfd entry{socket, events, 0};
    const int ready = poll(&entry, 1, poll_timeout_ms(deadline));
    if (ready > 0) return IoResult::done;
    if (ready < 0 && errno != EINTR) return IoResult::closed;
    if (Clock::now() >= deadline) return IoResult::timed_out;
  }
}

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK; }

IoResult send_bytes(int socket, const void* bytes, size_t count, Clock::time_point deadline) {
  const char* at = static_cast<const char*>(bytes);
  while (count > 0) {
    const ssize_t sent = send(socket, at, count, MSG_NOSIGNAL);
    if (sent > 0) {
      at += sent;
      count -= static_cast<size_t>(sent);
    } else if (sent < 0 && would_block()) {
      const IoResult waited = wait_for(socket, POLLOUT, deadline);
      if (waited != IoResult::done) return waited;
    } else if (!(sent < 0 && errno == EINTR)) {
      return IoResult::closed;
    }
  }
  return IoResult::done;
}

// Room for one descriptor in a control message.
union DescriptorControl {
  cmsghdr header;
  char bytes[CMSG_SPACE(sizeof(int))];
};

}  // namespace

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) close(fd_);
    fd_ = other.release();
  }
  return *this;
}

Descriptor::~Descriptor() {
  if (fd_ >= 0) close(fd_);
}

int poll_timeout_ms(Clock::time_point deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, std::numeric_limits<int>::max()));
}

IoResult send_message(int socket, std::string_view body, Clock::time_point deadline) {
  const Length length = body.size();
  const IoResult sent = send_bytes(socket, &length, sizeof(length), deadline);
  return sent == IoResult::done ? send_bytes(socket, body.data(), body.size(), deadline) : sent;
}

IoResult MessageReader::advance(int socket) {
  while (true) {
    Length length = 0;
    const bool in_header = header_.size() < sizeof(Length);
    if (!in_header) {
      std::memcpy(&length, header_.data(), sizeof(length));
      if (length > kMaxLength) return IoResult::closed;
      body_.resize(length);
      if (received_ == length) return IoResult::done;
    }
    char header_bytes[sizeof(Length)];
    char* const into = in_header ? header_bytes : body_.data() + received_;
    const size_t wanted = in_header ? sizeof(Length) - header_.size() : length - received_;
    const ssize_t got = recv(socket, into, wanted, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && would_block()) return IoResult::timed_out;
    if (got <= 0) return IoResult::closed;
    if (in_header) {
      header_.append(header_bytes, static_cast<size_t>(got));
    } else {
      received_ += static_cast<size_t>(got);
    }
  }
}

std::vector<Received> receive_messages(std::span<const int> sockets, Clock::time_point deadline) {
  std::vector<Received> all(sockets.size());
  std::vector<MessageReader> readers(sockets.size());
  std::vector<pollfd> entries(sockets.size());
  for (size_t i = 0; i < sockets.size(); ++i) entries[i] = {sockets[i], POLLIN, 0};
  size_t open = sockets.size();
  while (open > 0) {
    const int ready = poll(entries.data(), entries.size(), poll_timeout_ms(deadline));
    for (size_t i = 0; ready > 0 && i < entries.size(); ++i) {
      if (entries[i].fd < 0 || entries[i].revents == 0) continue;
      all[i].result = readers[i].advance(sockets[i]);
      if (all[i].result == IoResult::timed_out) continue;
      entries[i].fd = -1;  // complete or closed: poll() skips it
      all[i].body = std::move(readers[i].body());
      --open;
    }
    if (open > 0 && Clock::now() >= deadline) break;
  }
  return all;
}

IoResult send_descriptor(int socket, int descriptor, Clock::time_point deadline) {
  char byte = 'd';
  iovec data{&byte, 1};
  DescriptorControl control{};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control.bytes;
  message.msg_controllen = sizeof(control.bytes);
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
  while (true) {
    if (sendmsg(socket, &message, MSG_NOSIGNAL) == 1) return IoResult::done;
    if (errno == EINTR) continue;
    if (!would_block()) return IoResult::closed;
    const IoResult waited = wait_for(socket, POLLOUT, deadline);
    if (waited != IoResult::done) return waited;
  }
}

IoResult receive_descriptor(int socket, Descriptor& descriptor, Clock::time_point deadline) {
  char byte = 0;
  iovec data{&byte, 1};
  DescriptorControl control{};
  while (true) {
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof(control.bytes);
    const ssize_t got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    if (got == 1) {
      const cmsghdr* const header = CMSG_FIRSTHDR(&message);
      if (header == nullptr || header->cmsg_type != SCM_RIGHTS) return IoResult::closed;
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header), sizeof(int));
      descriptor = Descriptor(fd);
      return IoResult::done;
    }
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && would_block()) {
      const IoResult waited = wait_for(socket, POLLIN, deadline);
      if (waited != IoResult::done) return waited;
      continue;
    }
    return IoResult::closed;
  }
}

}  // namespace mixlane
