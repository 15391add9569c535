#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>

#include "comm/gpu_memory.hpp"
#include "comm/launch.hpp"
#include "comm/ranks.hpp"
#include "comm/rendezvous.hpp"
#include "core/error.hpp"
#include "core/memory_budget.hpp"
#include "mixlane/comm.hpp"

namespace mixlane {
namespace {

class MappedMemory final : public SymmetricMemory {
 public:
  // Throws out_of_memory if the address space is short.
  MappedMemory(int file, int64_t bytes_per_rank, int64_t stride, int num_ranks)
      : bytes_(bytes_per_rank), stride_(stride), size_(static_cast<size_t>(stride * num_ranks)) {
    void* const address = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (address == MAP_FAILED)
      fail(ErrorCode::out_of_memory, "can't map {} bytes of shared memory: {}", size_, std::strerror(errno));
    base_ = static_cast<std::byte*>(address);
    // Where the system grants large pages to shared memory on request; elsewhere a refusal that changes nothing.
    madvise(address, size_, MADV_HUGEPAGE);
  }
  ~MappedMemory() override { munmap(base_, size_); }
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;

  std::byte* part(int rank) const override { return base_ + rank * stride_; }
  int64_t bytes_per_rank() const override { return bytes_; }
  Device device() const override { return {}; }

 private:
  int64_t bytes_;
  int64_t stride_;
  size_t size_;
  std::byte* base_;
};

// A limit on file sizes (ulimit -f) counts for memory files too and would end the process with SIGXFSZ instead of EFBIG.
class FileSizeSignalBlocked {
 public:
  FileSizeSignalBlocked() {
    sigemptyset(&set_);
    sigaddset(&set_, SIGXFSZ);
    pthread_sigmask(SIG_BLOCK, &set_, &before_);
  }
  ~FileSizeSignalBlocked() {
    const timespec now{};
    while (sigtimedwait(&set_, nullptr, &now) == SIGXFSZ) {
    }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  FileSizeSignalBlocked(const FileSizeSignalBlocked&) = delete;
  FileSizeSignalBlocked& operator=(const FileSizeSignalBlocked&) = delete;

 private:
  sigset_t set_;
  sigset_t before_;
};

// "" or what went wrong.
std::string open_memory(std::string_view what, int64_t bytes, Descriptor& file) {
  const FileSizeSignalBlocked blocked;
  if (std::string shortage = memory_shortage(bytes, what); !shortage.empty()) return shortage;
  file = Descriptor(memfd_create("mixlane", MFD_CLOEXEC));
  if (!file || ftruncate(file.get(), bytes) != 0)
    return fmt::format("{} needs {} bytes of shared memory: {}", what, bytes, std::strerror(errno));
  return "";
}

// Pages exist from here on, so that no write can end in SIGBUS; each rank makes its own, on its own memory node.
std::string reserve_part(std::string_view what, int file, int64_t offset, int64_t bytes) {
  const FileSizeSignalBlocked blocked;
  int error = 0;
  do {
    error = fallocate(file, 0, offset, bytes) == 0 ? 0 : errno;
  } while (error == EINTR);
  if (error == 0) return "";
  return fmt::format("{} needs {} bytes of shared memory per rank: {}; {} MiB are free", what, bytes, std::strerror(error),
                     free_memory_bytes() >> 20);
}

class ProcessGroup final : public Communicator {
 public:
  ProcessGroup(int rank, int num_ranks, std::vector<Descriptor> sockets)
      : rank_(rank), num_ranks_(num_ranks), sockets_(std::move(sockets)) {}

  int rank() const override { return rank_; }
  int num_ranks() const override { return num_ranks_; }

  std::vector<std::string> all_gather(std::string_view bytes) override {
    if (num_ranks_ == 1) return {std::string(bytes)};
    if (!broken_.empty()) fail(ErrorCode::peer_timeout, "{}", broken_);
    return rank_ == 0 ? gather_as_first(bytes) : gather_as_other(bytes);
  }

  std::shared_ptr<SymmetricMemory> allocate(int64_t bytes_per_rank, std::string_view what, Device device) override {
    require_equal(fmt::format("shared memory of {}", what), fmt::format("{} bytes, {}", bytes_per_rank, name(device.type)));
    const int64_t page = sysconf(_SC_PAGESIZE);
    if (bytes_per_rank < 1 || bytes_per_rank > (INT64_MAX / num_ranks_) - page)
      fail(ErrorCode::invalid_argument, "{} asks for {} bytes of shared memory on each of {} ranks", what, bytes_per_rank,
           num_ranks_);
    if (device.type != DeviceType::cpu) return allocate_on_gpu(*this, RankHome::processes, bytes_per_rank, what, device);
    const int64_t stride = (bytes_per_rank + page - 1) / page * page;

    Descriptor file;
    throw_if_any(rank_ == 0 ? open_memory(what, stride * num_ranks_, file) : "");
    pass_to_all(file);
    throw_if_any(reserve_part(what, file.get(), rank_ * stride, stride));
    return std::make_shared<MappedMemory>(file.get(), bytes_per_rank, stride, num_ranks_);
  }

 private:
  // Answers of rank 0: all values, or why there are none.
  static constexpr char kValues = 'v';
  static constexpr char kFailure = 'f';

  // Rank 0 tells the others about a missing rank at its deadline, which began at most one deadline later than theirs.
  Clock::time_point answer_deadline() const { return Clock::now() + 2 * deadline() + std::chrono::milliseconds(100); }

  std::vector<std::string> gather_as_first(std::string_view bytes) {
    std::vector<int> sockets;
    for (int r = 1; r < num_ranks_; ++r) sockets.push_back(sockets_[r].get());
    std::vector<Received> received = receive_messages(sockets, Clock::now() + deadline());

    std::vector<std::string> values{std::string(bytes)};
    std::vector<int> gone, late;
    for (int r = 1; r < num_ranks_; ++r) {
      if (received[r - 1].result == IoResult::closed) gone.push_back(r);
      if (received[r - 1].result == IoResult::timed_out) late.push_back(r);
      values.push_back(std::move(received[r - 1].body));
    }
    std::string failure;
    if (!gone.empty()) failure = fmt::format("{} went away", rank_list(gone));
    if (!late.empty())
      failure +=
          fmt::format("{}{} did not answer within {} ms", failure.empty() ? "" : ", ", rank_list(late), deadline().count());

    const std::string answer = failure.empty() ? kValues + packed(values) : kFailure + failure;
    for (int r = 1; r < num_ranks_; ++r)
      if (received[r - 1].result == IoResult::done) send_message(sockets_[r].get(), answer, Clock::now() + deadline());
    if (!failure.empty()) break_with(failure);
    return values;
  }

  std::vector<std::string> gather_as_other(std::string_view bytes) {
    const int socket = sockets_[0].get();
    const auto until = answer_deadline();
    if (send_message(socket, bytes, until) == IoResult::closed) break_with("rank 0 went away");
    Received answer = receive_messages({&socket, 1}, until)[0];
    if (answer.result == IoResult::closed) break_with("rank 0 went away");
    if (answer.result == IoResult::timed_out)
      break_with(fmt::format("rank 0 did not answer within {} ms", deadline().count()));
    if (answer.body.empty() || answer.body[0] != kValues) break_with(answer.body.substr(1));
    return unpacked(answer.body);
  }

  static std::string packed(const std::vector<std::string>& values) {
    std::string text;
    for (const std::string& value : values) {
      const uint64_t size = value.size();
      text.append(reinterpret_cast<const char*>(&size), sizeof(size));
      text += value;
    }
    return text;
  }

  std::vector<std::string> unpacked(const std::string& answer) const {
    std::vector<std::string> values;
    size_t at = 1;  // behind kValues
    for (int r = 0; r < num_ranks_; ++r) {
      uint64_t size = 0;
      std::memcpy(&size, answer.data() + at, sizeof(size));
      values.push_back(answer.substr(at + sizeof(size), size));
      at += sizeof(size) + size;
    }
    return values;
  }

  // After a failed collective the streams may hold half a message: the group stays unusable, with the same words.
  [[noreturn]] void break_with(const std::string& what) {
    broken_ = fmt::format("rank {}: {}", rank_, what);
    fail(ErrorCode::peer_timeout, "{}", broken_);
  }

  void throw_if_any(const std::string& own_failure) {
    for (const std::string& failure : all_gather(own_failure))
      if (!failure.empty()) fail(ErrorCode::out_of_memory, "{}", failure);
  }

  void pass_to_all(Descriptor& file) {
    if (rank_ == 0) {
      for (int r = 1; r < num_ranks_; ++r)
        if (send_descriptor(sockets_[r].get(), file.get(), Clock::now() + deadline()) != IoResult::done)
          break_with(fmt::format("rank {} went away", r));
    } else if (receive_descriptor(sockets_[0].get(), file, answer_deadline()) != IoResult::done) {
      break_with("rank 0 went away");
    }
  }

  int rank_;
  int num_ranks_;
  std::vector<Descriptor> sockets_;  // rank 0: by rank; others: to rank 0
  std::string broken_;
};

}  // namespace

std::shared_ptr<Communicator> make_process_group(std::chrono::milliseconds deadline) {
  const Env env = Env::read();
  const LaunchInfo launch = read_launch(env.launch);
  if (launch.num_local_ranks < launch.num_ranks)
    fail(ErrorCode::unsupported, "{} of {} ranks are on this host ({} variables); start all ranks on one host",
         launch.num_local_ranks, launch.num_ranks, launch.source);
  std::vector<Descriptor> sockets;
  if (launch.num_ranks > 1) sockets = meet(launch, deadline);
  auto group = std::make_shared<ProcessGroup>(launch.rank, launch.num_ranks, std::move(sockets));
  group->set_deadline(env.deadline);
  return group;
}

}  // namespace mixlane
