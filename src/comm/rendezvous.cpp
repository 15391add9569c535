#include "comm/rendezvous.hpp"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>

#include "comm/ranks.hpp"
#include "core/error.hpp"

namespace mixlane {
namespace {

constexpr std::string_view kWelcome = "welcome";

struct Address {
  sockaddr_un address{};
  socklen_t length = 0;
};

// A name of fixed length whatever the job is called; the full job text is compared in the greeting.
Address address_of(const LaunchInfo& launch) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (const char c : launch.job) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  const std::string name = fmt::format("mixlane/{}/{:016x}", geteuid(), hash);
  Address result;
  result.address.sun_family = AF_UNIX;
  std::memcpy(result.address.sun_path + 1, name.data(), name.size());  // a leading 0 makes it abstract
  result.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  return result;
}

Descriptor open_socket() {
  Descriptor socket_fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket_fd) fail(ErrorCode::io_error, "can't open a socket: {}", std::strerror(errno));
  return socket_fd;
}

bool same_user(int socket) {
  ucred peer{};
  socklen_t size = sizeof(peer);
  return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == geteuid();
}

// Rank, then what must be equal on all ranks.
std::string greeting(int rank, const LaunchInfo& launch) {
  return fmt::format("{:08} {} ranks, job {}", rank, launch.num_ranks, launch.job);
}

// Rank 0's side: the ranks that have come, and the connections that have not said yet who they are.
class Reception {
 public:
  explicit Reception(const LaunchInfo& launch) : launch_(launch), ranks_(static_cast<size_t>(launch.num_ranks)) {
    const Address address = address_of(launch);
    listener_ = open_socket();
    if (bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address.address), address.length) != 0 ||
        listen(listener_.get(), SOMAXCONN) != 0)
      fail(ErrorCode::io_error, "rank 0 can't open the meeting point of job '{}': {}{}", launch.job, std::strerror(errno),
           errno == EADDRINUSE ? "; another rank 0 of the same job is running" : "");
  }

  std::vector<Descriptor> run(std::chrono::milliseconds wait) {
    const auto deadline = Clock::now() + wait;
    while (num_come_ + 1 < launch_.num_ranks) {
      if (Clock::now() >= deadline) give_up(wait);
      wait_for_news(deadline);
      accept_all();
      hear_all();
    }
    // A rank that has its welcome may come to the next group of this job at once: it must not find this door.
    listener_ = {};
    guests_.clear();
    for (int r = 1; r < launch_.num_ranks; ++r) send_message(ranks_[r].get(), kWelcome, Clock::now() + wait);
    return std::move(ranks_);
  }

 private:
  struct Guest {
    Descriptor socket;
    MessageReader reader;
  };

  void wait_for_news(Clock::time_point deadline) {
    std::vector<pollfd> entries{{listener_.get(), POLLIN, 0}};
    for (const Guest& guest : guests_) entries.push_back({guest.socket.get(), POLLIN, 0});
    poll(entries.data(), entries.size(), poll_timeout_ms(deadline));
  }

  void accept_all() {
    while (true) {
      Descriptor socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (!socket) return;
      if (same_user(socket.get())) guests_.push_back({std::move(socket), {}});
    }
  }

  void hear_all() {
    std::vector<Guest> still_silent;
    for (Guest& guest : guests_) {
      const IoResult heard = guest.reader.advance(guest.socket.get());
      if (heard == IoResult::timed_out) still_silent.push_back(std::move(guest));
      if (heard == IoResult::done) seat(std::move(guest.socket), guest.reader.body());
    }
    guests_ = std::move(still_silent);
  }

  void seat(Descriptor socket, const std::string& text) {
    const int rank = std::atoi(text.c_str());
    if (rank < 1 || rank >= launch_.num_ranks || text != greeting(rank, launch_)) {
      const std::string refusal =
          fmt::format("a rank came with '{}', rank 0 has '{}': start all ranks of a job alike", text, greeting(0, launch_));
      send_message(socket.get(), refusal, Clock::now());
      refuse_all(ErrorCode::config_mismatch, refusal);
    }
    if (ranks_[rank]) {
      send_message(socket.get(), fmt::format("rank {} of job '{}' is there already", rank, launch_.job), Clock::now());
      return;
    }
    ranks_[rank] = std::move(socket);
    ++num_come_;
  }

  [[noreturn]] void give_up(std::chrono::milliseconds wait) {
    std::vector<int> missing;
    for (int r = 1; r < launch_.num_ranks; ++r)
      if (!ranks_[r]) missing.push_back(r);
    refuse_all(ErrorCode::peer_timeout,
               fmt::format("{} of {} did not come within {} ms", rank_list(missing), launch_.num_ranks, wait.count()));
  }

  [[noreturn]] void refuse_all(ErrorCode code, const std::string& text) {
    for (const Descriptor& socket : ranks_)
      if (socket) send_message(socket.get(), text, Clock::now());
    fail(code, "{}", text);
  }

  const LaunchInfo& launch_;
  Descriptor listener_;
  std::vector<Descriptor> ranks_;
  std::vector<Guest> guests_;
  int num_come_ = 0;
};

// Rank 0 may start later than the others: until it listens, connections are refused.
Descriptor connect_to_first(const LaunchInfo& launch, std::chrono::milliseconds wait) {
  const auto deadline = Clock::now() + wait;
  const Address address = address_of(launch);
  while (true) {
    Descriptor socket = open_socket();
    if (connect(socket.get(), reinterpret_cast<const sockaddr*>(&address.address), address.length) == 0) {
      if (same_user(socket.get())) return socket;
      fail(ErrorCode::io_error, "the meeting point of job '{}' belongs to another user", launch.job);
    }
    if (Clock::now() >= deadline)
      fail(ErrorCode::peer_timeout, "rank {}: rank 0 of job '{}' did not come within {} ms", launch.rank, launch.job,
           wait.count());
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

}  // namespace

std::vector<Descriptor> meet(const LaunchInfo& launch, std::chrono::milliseconds wait) {
  if (launch.rank == 0) return Reception(launch).run(wait);
  // Rank 0 may have begun to wait later than this rank, and answers at its own deadline.
  const auto deadline = Clock::now() + 2 * wait;
  std::vector<Descriptor> sockets;
  sockets.push_back(connect_to_first(launch, wait));
  const int socket = sockets[0].get();
  send_message(socket, greeting(launch.rank, launch), deadline);
  const Received answer = receive_messages({&socket, 1}, deadline)[0];
  if (answer.result == IoResult::done && answer.body == kWelcome) return sockets;
  if (answer.result == IoResult::done) {
    const bool missing = answer.body.find("did not come") != std::string::npos;
    fail(missing ? ErrorCode::peer_timeout : ErrorCode::config_mismatch, "rank {}: {}", launch.rank, answer.body);
  }
  fail(ErrorCode::peer_timeout, "rank {}: rank 0 {} before all ranks had met", launch.rank,
       answer.result == IoResult::closed ? "went away" : "did not answer");
}

}  // namespace mixlane
