// Where the ranks meet while they measure: a gate that opens for all at once, and a mailbox per rank. Everything is in
// symmetric memory: no message is sent between two samples, and a rank that died can be left out.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "mixlane/comm.hpp"
#include "mixlane/dispatch.hpp"

namespace mixlane::bench {

class Gate {
 public:
  // Collective. `mailbox_bytes` is the most that one post() carries.
  Gate(std::shared_ptr<Communicator> comm, int64_t mailbox_bytes, OnPeerTimeout on_timeout);

  int rank() const { return rank_; }
  int num_ranks() const { return num_ranks_; }

  // Waits until every rank that is not left out has arrived; the last one opens the gate. Returns the time of opening
  // (now_ns) as the opener stamped it, the same on all ranks. What a rank wrote before it arrived is visible behind the
  // gate. A rank that does not come within the communicator's deadline is an Error(peer_timeout) naming it, or is left
  // out from then on (mask).
  int64_t pass();
  // Goes on without these ranks; any rank may say so.
  void leave_out(std::span<const int> ranks);
  bool is_left_out(int rank) const;
  std::vector<int> left_out() const;

  // A rank's mailbox: write to one's own, pass(), read the others', pass() before the next write.
  std::span<std::byte> mailbox(int rank) const;
  int64_t mailbox_bytes() const { return mailbox_bytes_; }

  // One value of rank 0 for all: rank 0 sets it before a pass(), everybody reads it behind.
  void set_word(int64_t value);
  int64_t word() const;

  // Every rank's values, in rank order; those of a rank left out are empty. Collective.
  template <class T>
  std::vector<std::vector<T>> all_gather(std::span<const T> own) {
    static_assert(std::is_trivially_copyable_v<T>);
    std::vector<std::vector<T>> all(num_ranks_);
    const auto texts = all_gather_bytes(std::as_bytes(own));
    for (int r = 0; r < num_ranks_; ++r) {
      const auto* values = reinterpret_cast<const T*>(texts[r].data());
      all[r].assign(values, values + texts[r].size() / sizeof(T));
    }
    return all;
  }

 private:
  struct Control;  // one per rank, at the start of its part
  Control& control(int rank) const;
  bool all_arrived(int64_t epoch) const;
  bool try_open(int64_t epoch);
  void wait_for_opening(int64_t epoch);
  void on_deadline(int64_t epoch);
  std::vector<std::vector<std::byte>> all_gather_bytes(std::span<const std::byte> own);

  std::shared_ptr<Communicator> comm_;
  std::shared_ptr<SymmetricMemory> memory_;
  int rank_, num_ranks_;
  int64_t mailbox_bytes_;
  OnPeerTimeout on_timeout_;
  int64_t epoch_ = 0;
};

}  // namespace mixlane::bench
