#include "comm/gpu_memory.hpp"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>

#include "comm/socket.hpp"
#include "core/error.hpp"
#include "gpu/peer.hpp"

namespace mixlane {
namespace {

using Part = std::shared_ptr<gpu::SharedBuffer>;

// Of ranks that are threads: all hold all parts, the last one to let go frees them.
class ThreadsMemory final : public SymmetricMemory {
 public:
  ThreadsMemory(std::vector<Part> parts, int64_t bytes, Device device)
      : parts_(std::move(parts)), bytes_(bytes), device_(device) {}
  std::byte* part(int rank) const override { return parts_[rank]->data(); }
  int64_t bytes_per_rank() const override { return bytes_; }
  Device device() const override { return device_; }

 private:
  std::vector<Part> parts_;
  int64_t bytes_;
  Device device_;
};

// Host memory in which the processes note who has unmapped the others' parts.
struct alignas(64) ReleaseNote {
  uint32_t done;
};

uint32_t load(uint32_t& word) { return std::atomic_ref<uint32_t>(word).load(std::memory_order_acquire); }
void store(uint32_t& word, uint32_t value) { std::atomic_ref<uint32_t>(word).store(value, std::memory_order_release); }

// Another process, to see when it has ended: also one that its parent has not taken note of yet.
class PeerProcess {
 public:
  explicit PeerProcess(pid_t process)
      : process_(process), descriptor_(static_cast<int>(syscall(SYS_pidfd_open, process, 0))) {}
  bool ended() const {
    if (!descriptor_) return kill(process_, 0) != 0 && errno == ESRCH;  // Linux before 5.3
    pollfd state{descriptor_.get(), POLLIN, 0};
    return poll(&state, 1, 0) == 1;
  }

 private:
  pid_t process_;
  Descriptor descriptor_;
};

// Of ranks that are processes. Memory must not be freed while a peer has it mapped, so each rank unmaps first, says so,
// and frees its own part when all others that still live have done the same, or at the deadline.
class ProcessesMemory final : public SymmetricMemory {
 public:
  ProcessesMemory(Communicator& comm, Part own, int64_t bytes)
      : rank_(comm.rank()),
        bytes_(bytes),
        deadline_(comm.deadline()),
        own_(std::move(own)),
        imported_(static_cast<size_t>(comm.num_ranks())),
        notes_(comm.allocate(static_cast<int64_t>(sizeof(ReleaseNote)), "the release of GPU memory")) {
    for (const std::string& process : comm.all_gather(std::to_string(getpid()))) processes_.emplace_back(std::stoi(process));
  }
  ~ProcessesMemory() override {
    imported_.clear();
    store(note(rank_).done, 1);
    const auto until = std::chrono::steady_clock::now() + deadline_;
    while (!all_done() && std::chrono::steady_clock::now() < until)
      std::this_thread::sleep_for(std::chrono::microseconds(200));
  }

  void import(int rank, const std::string& handle) {
    imported_[rank] = std::make_unique<gpu::ImportedBuffer>(own_->device(), handle);
  }

  std::byte* part(int rank) const override { return rank == rank_ ? own_->data() : imported_[rank]->data(); }
  int64_t bytes_per_rank() const override { return bytes_; }
  Device device() const override { return own_->device(); }

 private:
  ReleaseNote& note(int rank) const { return *reinterpret_cast<ReleaseNote*>(notes_->part(rank)); }
  bool all_done() const {
    for (size_t r = 0; r < processes_.size(); ++r)
      if (load(note(static_cast<int>(r)).done) == 0 && !processes_[r].ended()) return false;
    return true;
  }

  int rank_;
  int64_t bytes_;
  std::chrono::milliseconds deadline_;
  Part own_;
  std::vector<std::unique_ptr<gpu::ImportedBuffer>> imported_;
  std::vector<PeerProcess> processes_;
  std::shared_ptr<SymmetricMemory> notes_;
};

// Runs `step` on every rank and fails on all if it failed on one.
template <class Step>
void together(Communicator& comm, Step&& step) {
  std::string failure;
  ErrorCode code = ErrorCode::ok;
  try {
    step();
  } catch (const Error& error) {
    code = error.code();
    // Without the code's name in front, which the new error adds again.
    failure = fmt::format("rank {}: {}", comm.rank(), std::string_view(error.what()).substr(name(code).size() + 2));
  }
  for (const std::string& answer : comm.all_gather(fmt::format("{}:{}", static_cast<int>(code), failure)))
    if (answer[0] != '0') fail(static_cast<ErrorCode>(std::stoi(answer)), "{}", answer.substr(answer.find(':') + 1));
}

void connect_peers(Communicator& comm, Device device) {
  const std::vector<std::string> indices = comm.all_gather(std::to_string(device.index));
  together(comm, [&] {
    for (const std::string& index : indices) {
      const std::string why = gpu::connect_peer(device, {device.type, std::stoi(index)});
      if (!why.empty()) fail(ErrorCode::unsupported, "{}", why);
    }
  });
}

std::shared_ptr<SymmetricMemory> share_between_threads(Communicator& comm, const Part& own, int64_t bytes, Device device) {
  connect_peers(comm, device);
  const Part* const address = &own;
  std::vector<Part> parts;
  for (const std::string& text : comm.all_gather({reinterpret_cast<const char*>(&address), sizeof(address)})) {
    const Part* peer = nullptr;
    std::memcpy(&peer, text.data(), sizeof(peer));
    parts.push_back(*peer);
  }
  comm.barrier();  // `own` lives until all have copied it
  return std::make_shared<ThreadsMemory>(std::move(parts), bytes, device);
}

std::shared_ptr<SymmetricMemory> share_between_processes(Communicator& comm, Part own, int64_t bytes) {
  std::string handle;
  together(comm, [&] { handle = own->handle(); });
  const std::vector<std::string> handles = comm.all_gather(handle);
  auto memory = std::make_shared<ProcessesMemory>(comm, std::move(own), bytes);
  together(comm, [&] {
    for (int r = 0; r < comm.num_ranks(); ++r)
      if (r != comm.rank()) memory->import(r, handles[r]);
  });
  return memory;
}

}  // namespace

std::shared_ptr<SymmetricMemory> allocate_on_gpu(Communicator& comm, RankHome home, int64_t bytes_per_rank,
                                                 std::string_view what, Device device) {
  Part own;
  together(comm, [&] { own = std::make_shared<gpu::SharedBuffer>(device, bytes_per_rank, what); });
  if (home == RankHome::threads_of_one_process) return share_between_threads(comm, own, bytes_per_rank, device);
  return share_between_processes(comm, std::move(own), bytes_per_rank);
}

}  // namespace mixlane
