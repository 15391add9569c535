#include "measure/gate.hpp"

#include <sched.h>

#include <atomic>
#include <cstring>
#include <ctime>

#include "core/error.hpp"
#include "measure/clock.hpp"

namespace mixlane::bench {

// Zeroed memory is its initial state. Rank 0's `opened`, `left_out` and `word` are the group's.
struct Gate::Control {
  alignas(64) std::atomic<int64_t> arrived;  // the epoch this rank waits for
  std::atomic<int64_t> arrived_ns;           // when
  std::atomic<int64_t> posted_bytes;
  alignas(64) std::atomic<int64_t> opened;  // epoch * kMaxRanks + the rank that opened it
  alignas(64) std::atomic<uint64_t> left_out;
  std::atomic<int64_t> word;
};

namespace {

constexpr int64_t kMaxRanks = 64;
constexpr int64_t kSpins = 200;
constexpr int64_t kPatienceNs = 5'000'000;  // wait awake this long, asleep behind it

void pause_briefly(int64_t spins, int64_t waited_ns) {
  if (spins < kSpins) {
    __builtin_ia32_pause();
  } else if (waited_ns < kPatienceNs) {
    sched_yield();
  } else {
    const timespec nap{0, 100'000};
    nanosleep(&nap, nullptr);
  }
}

}  // namespace

Gate::Gate(std::shared_ptr<Communicator> comm, int64_t mailbox_bytes, OnPeerTimeout on_timeout)
    : comm_(std::move(comm)),
      rank_(comm_->rank()),
      num_ranks_(comm_->num_ranks()),
      mailbox_bytes_(mailbox_bytes),
      on_timeout_(on_timeout) {
  if (num_ranks_ > kMaxRanks) fail(ErrorCode::unsupported, "{} ranks; the benchmark takes up to {}", num_ranks_, kMaxRanks);
  memory_ = comm_->allocate(static_cast<int64_t>(sizeof(Control)) + mailbox_bytes, "benchmark gate");
}

Gate::Control& Gate::control(int rank) const { return *reinterpret_cast<Control*>(memory_->part(rank)); }

std::span<std::byte> Gate::mailbox(int rank) const {
  return {memory_->part(rank) + sizeof(Control), static_cast<size_t>(mailbox_bytes_)};
}

void Gate::set_word(int64_t value) { control(0).word.store(value); }
int64_t Gate::word() const { return control(0).word.load(); }

void Gate::leave_out(std::span<const int> ranks) {
  uint64_t bits = 0;
  for (int rank : ranks) bits |= uint64_t{1} << rank;
  if (bits != 0) control(0).left_out.fetch_or(bits);
}

bool Gate::is_left_out(int rank) const { return (control(0).left_out.load() >> rank & 1) != 0; }

std::vector<int> Gate::left_out() const {
  std::vector<int> ranks;
  for (int r = 0; r < num_ranks_; ++r)
    if (is_left_out(r)) ranks.push_back(r);
  return ranks;
}

bool Gate::all_arrived(int64_t epoch) const {
  for (int r = 0; r < num_ranks_; ++r)
    if (control(r).arrived.load() < epoch && !is_left_out(r)) return false;
  return true;
}

// Several ranks may see that all are there: one of them opens.
bool Gate::try_open(int64_t epoch) {
  if (!all_arrived(epoch)) return false;
  std::atomic<int64_t>& opened = control(0).opened;
  int64_t before = opened.load();
  if (before / kMaxRanks >= epoch) return true;
  control(rank_).arrived_ns.store(now_ns());
  opened.compare_exchange_strong(before, epoch * kMaxRanks + rank_);
  return true;
}

int64_t Gate::pass() {
  const int64_t epoch = ++epoch_;
  control(rank_).arrived.store(epoch);
  wait_for_opening(epoch);
  if (is_left_out(rank_)) fail(ErrorCode::rank_masked, "the other ranks gave up on rank {} and went on without it", rank_);
  return control(static_cast<int>(control(0).opened.load() % kMaxRanks)).arrived_ns.load();
}

void Gate::wait_for_opening(int64_t epoch) {
  const std::atomic<int64_t>& opened = control(0).opened;
  const int64_t begin_ns = now_ns();
  const int64_t deadline_ns = std::chrono::nanoseconds(comm_->deadline()).count();
  int64_t waited_ns = 0;
  for (int64_t spins = 0; opened.load() / kMaxRanks < epoch; ++spins) {
    if (try_open(epoch)) continue;
    pause_briefly(spins, waited_ns);
    if (spins >= kSpins) waited_ns = now_ns() - begin_ns;
    if (waited_ns > deadline_ns) on_deadline(epoch);
  }
}

void Gate::on_deadline(int64_t epoch) {
  std::vector<int> missing;
  for (int r = 0; r < num_ranks_; ++r)
    if (control(r).arrived.load() < epoch && !is_left_out(r)) missing.push_back(r);
  if (on_timeout_ == OnPeerTimeout::mask) return leave_out(missing);
  if (!missing.empty())
    fail(ErrorCode::peer_timeout,
         "rank {} did not come to the next sample within {} ms; its own message or the system log "
         "says why, --deadline waits longer",
         fmt::join(missing, ", "), comm_->deadline().count());
}

std::vector<std::vector<std::byte>> Gate::all_gather_bytes(std::span<const std::byte> own) {
  if (static_cast<int64_t>(own.size()) > mailbox_bytes_)
    fail(ErrorCode::internal, "{} bytes for a mailbox of {}", own.size(), mailbox_bytes_);
  if (!own.empty()) std::memcpy(mailbox(rank_).data(), own.data(), own.size());
  control(rank_).posted_bytes.store(static_cast<int64_t>(own.size()));
  pass();
  std::vector<std::vector<std::byte>> all(num_ranks_);
  for (int r = 0; r < num_ranks_; ++r) {
    if (is_left_out(r)) continue;
    const auto posted = mailbox(r).first(static_cast<size_t>(control(r).posted_bytes.load()));
    all[r].assign(posted.begin(), posted.end());
  }
  pass();
  return all;
}

}  // namespace mixlane::bench
