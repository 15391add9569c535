#include <sys/mman.h>

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <mutex>

#include "comm/gpu_memory.hpp"
#include "comm/ranks.hpp"
#include "core/error.hpp"
#include "core/memory_budget.hpp"
#include "mixlane/comm.hpp"

namespace mixlane {
namespace {

class PrivateMemory final : public SymmetricMemory {
 public:
  PrivateMemory(int64_t bytes_per_rank, int num_ranks)
      : bytes_(bytes_per_rank),
        stride_((bytes_per_rank + kPage - 1) / kPage * kPage),
        size_(static_cast<size_t>(stride_ * num_ranks)) {
    void* const address = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) fail(ErrorCode::out_of_memory, "can't map {} bytes: {}", size_, std::strerror(errno));
    base_ = static_cast<std::byte*>(address);
  }
  ~PrivateMemory() override { munmap(base_, size_); }
  PrivateMemory(const PrivateMemory&) = delete;
  PrivateMemory& operator=(const PrivateMemory&) = delete;

  std::byte* part(int rank) const override { return base_ + rank * stride_; }
  int64_t bytes_per_rank() const override { return bytes_; }
  Device device() const override { return {}; }

 private:
  static constexpr int64_t kPage = 4096;
  int64_t bytes_;
  int64_t stride_;
  size_t size_;
  std::byte* base_;
};

// Where the threads meet. A round ends when all have arrived; the next can't end before each has left this one, so its
// results stay until then.
class Meeting {
 public:
  explicit Meeting(int num_ranks)
      : arrived_(static_cast<size_t>(num_ranks), false), values_(static_cast<size_t>(num_ranks)) {}

  int num_ranks() const { return static_cast<int>(values_.size()); }

  // `last` runs once per round, on the thread that arrives last, before the others go on.
  template <class Last>
  std::vector<std::string> exchange(int rank, std::string_view value, std::chrono::milliseconds wait, Last&& last) {
    std::unique_lock lock(mutex_);
    if (!broken_.empty()) fail(ErrorCode::peer_timeout, "rank {}: {}", rank, broken_);
    values_[rank] = value;
    arrived_[rank] = true;
    const uint64_t round = round_;
    if (missing().empty()) {
      last(values_);
      results_ = values_;
      arrived_.assign(arrived_.size(), false);
      ++round_;
      changed_.notify_all();
    } else if (!changed_.wait_for(lock, wait, [&] { return round_ != round || !broken_.empty(); })) {
      break_locked(fmt::format("{} did not answer within {} ms", rank_list(missing()), wait.count()));
    }
    if (round_ == round) fail(ErrorCode::peer_timeout, "rank {}: {}", rank, broken_);
    return results_;
  }

  void leave(int rank) {
    const std::lock_guard lock(mutex_);
    if (broken_.empty()) break_locked(fmt::format("rank {} went away", rank));
  }

  std::shared_ptr<SymmetricMemory> memory;  // of the round that ended last
  std::string memory_failure;

 private:
  std::vector<int> missing() const {
    std::vector<int> ranks;
    for (int r = 0; r < num_ranks(); ++r)
      if (!arrived_[r]) ranks.push_back(r);
    return ranks;
  }

  void break_locked(std::string why) {
    broken_ = std::move(why);
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t round_ = 0;
  std::vector<bool> arrived_;
  std::vector<std::string> values_;
  std::vector<std::string> results_;
  std::string broken_;
};

class ThreadGroup final : public Communicator {
 public:
  ThreadGroup(std::shared_ptr<Meeting> meeting, int rank) : meeting_(std::move(meeting)), rank_(rank) {}
  ~ThreadGroup() override { meeting_->leave(rank_); }

  int rank() const override { return rank_; }
  int num_ranks() const override { return meeting_->num_ranks(); }

  std::vector<std::string> all_gather(std::string_view bytes) override {
    return meeting_->exchange(rank_, bytes, deadline(), [](const auto&) {});
  }

  std::shared_ptr<SymmetricMemory> allocate(int64_t bytes_per_rank, std::string_view what, Device device) override {
    require_equal(fmt::format("shared memory of {}", what), fmt::format("{} bytes, {}", bytes_per_rank, name(device.type)));
    if (bytes_per_rank < 1 || bytes_per_rank > INT64_MAX / num_ranks() - 4096)
      fail(ErrorCode::invalid_argument, "{} asks for {} bytes of shared memory on each of {} ranks", what, bytes_per_rank,
           num_ranks());
    if (device.type != DeviceType::cpu)
      return allocate_on_gpu(*this, RankHome::threads_of_one_process, bytes_per_rank, what, device);
    meeting_->exchange(rank_, "", deadline(), [&](const auto&) { make_memory(bytes_per_rank, what); });
    const std::shared_ptr<SymmetricMemory> memory = meeting_->memory;
    const std::string failure = meeting_->memory_failure;
    // All hold it: the group lets go, so that it ends with its last user.
    meeting_->exchange(rank_, "", deadline(), [&](const auto&) { meeting_->memory.reset(); });
    if (memory == nullptr) fail(ErrorCode::out_of_memory, "{}", failure);
    return memory;
  }

 private:
  void make_memory(int64_t bytes_per_rank, std::string_view what) {
    meeting_->memory_failure = memory_shortage(bytes_per_rank * num_ranks(), what);
    if (!meeting_->memory_failure.empty()) return;
    try {
      meeting_->memory = std::make_shared<PrivateMemory>(bytes_per_rank, num_ranks());
    } catch (const Error& error) {
      meeting_->memory_failure = error.what();
    }
  }

  std::shared_ptr<Meeting> meeting_;
  int rank_;
};

}  // namespace

std::vector<std::shared_ptr<Communicator>> make_thread_group(int num_ranks) {
  if (num_ranks < 1) fail(ErrorCode::invalid_argument, "a group needs at least one rank; {} were asked for", num_ranks);
  const auto meeting = std::make_shared<Meeting>(num_ranks);
  std::vector<std::shared_ptr<Communicator>> members;
  for (int r = 0; r < num_ranks; ++r) members.push_back(std::make_shared<ThreadGroup>(meeting, r));
  return members;
}

}  // namespace mixlane
