#include "ops/dispatch/cpu/protocol.hpp"

#include <sched.h>

#include <atomic>
#include <bit>
#include <chrono>
#include <cstring>
#include <thread>

namespace mixlane {
namespace {

using Clock = std::chrono::steady_clock;

uint64_t load(uint64_t& word) { return std::atomic_ref<uint64_t>(word).load(std::memory_order_acquire); }
void store(uint64_t& word, uint64_t value) { std::atomic_ref<uint64_t>(word).store(value, std::memory_order_release); }

uint64_t bit(int rank) { return uint64_t{1} << rank; }

// Calls body(rank) for every member of a set, ascending.
template <class Body>
void for_each_rank(uint64_t set, Body&& body) {
  for (; set != 0; set &= set - 1) body(std::countr_zero(set));
}

uint64_t now_us() {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(Clock::now().time_since_epoch()).count());
}

LineKind flag_of(ExchangeStage stage) {
  return stage == ExchangeStage::dispatch ? LineKind::dispatch_flag : LineKind::combine_flag;
}

// A few looks at full speed, then giving up the processor, then sleeping: there may be fewer cores than ranks.
class Backoff {
 public:
  // True when it is time for slower checks.
  bool pause() {
    ++num_pauses_;
    if (num_pauses_ < 64) return false;
    if (num_pauses_ < 320) {
      sched_yield();
      return num_pauses_ % 64 == 0;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    return true;
  }

 private:
  int64_t num_pauses_ = 0;
};

}  // namespace

struct WindowProtocol::Wait {
  WaitStamp& stamp;
  LineKind line;
  uint64_t expected;
  uint64_t pending;
  uint64_t since_us = now_us();
  Clock::time_point deadline;
  bool stamped = false;

  Wait(WaitStamp& stamp_, LineKind line_, uint64_t expected_, uint64_t pending_, std::chrono::milliseconds limit)
      : stamp(stamp_), line(line_), expected(expected_), pending(pending_), deadline(Clock::now() + limit) {}
  ~Wait() {
    if (stamped) store(stamp.line, 0);
  }
  Wait(const Wait&) = delete;
  Wait& operator=(const Wait&) = delete;

  void publish() {
    store(stamp.pending, pending);
    if (stamped) return;
    store(stamp.expected, expected);
    store(stamp.since_us, since_us);
    store(stamp.line, 1 + static_cast<uint64_t>(line));
    stamped = true;
  }
  int64_t waited_us() const { return static_cast<int64_t>(now_us() - since_us); }
};

WindowProtocol::WindowProtocol(std::shared_ptr<Communicator> comm, const WindowLayout& layout, OnPeerTimeout on_timeout)
    : comm_(std::move(comm)),
      layout_(layout),
      on_timeout_(on_timeout),
      memory_(comm_->allocate(layout.total_bytes, "window memory of dispatch and combine")),
      rank_(comm_->rank()),
      others_((layout.num_ranks == 64 ? ~uint64_t{0} : bit(layout.num_ranks) - 1) & ~bit(rank_)) {}

WindowProtocol::~WindowProtocol() {
  if (!ended_) store(control(rank_).state.ended, static_cast<uint64_t>(Ended::left));
}

void WindowProtocol::require_usable() const {
  if (ended_) throw Error(*ended_);
}

// ---------------------------------------------------------------------------------------------
// A call

void WindowProtocol::advance(ExchangeStage stage) {
  Epochs& epochs = control(rank_).epochs;
  stage_ = stage;
  call_ = ++epochs.calls;
  epoch_ = ++epochs.stage[static_cast<int>(stage)];
}

void WindowProtocol::refuse(ExchangeStage stage, const Error& error) {
  if (ended_) return;
  advance(stage);
  ControlPage& page = control(rank_);
  page.epochs.chain = static_cast<uint64_t>(Chain::broken);
  publish_text(error.what());
  store(page.state.refused_code, static_cast<uint64_t>(error.code()));
  store(page.state.refused_call, call_);
}

void WindowProtocol::begin(ExchangeStage stage, Status& status) {
  require_usable();
  advance(stage);
  uint64_t& chain = control(rank_).epochs.chain;
  const auto before = static_cast<Chain>(chain);
  const Chain good = stage == ExchangeStage::dispatch ? Chain::combine : Chain::dispatch;
  chain = static_cast<uint64_t>(Chain::broken);  // until finish()
  if (before != Chain::fresh && before != good) exchange_credits(status);
}

void WindowProtocol::exchange_credits(Status& status) {
  for_each_rank(others_ & ~masked_, [&](int peer) { store(layout_.line(part(peer), LineKind::credit, rank_).word, call_); });
  wait_for_all(LineKind::credit, call_, status);
}

void WindowProtocol::post(int peer, int32_t num_rows) {
  Line& line = layout_.line(part(peer), flag_of(stage_), rank_);
  store(line.call, call_);
  store(line.word, epoch_ << 32 | static_cast<uint32_t>(num_rows));
}

void WindowProtocol::finish(std::span<int32_t> counts, Status& status) {
  wait_for_all(flag_of(stage_), epoch_, status);
  for (int s = 0; s < layout_.num_ranks; ++s)
    counts[s] = masked(s) ? 0 : static_cast<int32_t>(load(layout_.line(part(rank_), flag_of(stage_), s).word));
  control(rank_).epochs.chain = static_cast<uint64_t>(stage_ == ExchangeStage::dispatch ? Chain::dispatch : Chain::combine);
}

// ---------------------------------------------------------------------------------------------
// Waiting

// Has `source` written what `owner` waits for? A flag holds the lower half of its epoch.
bool WindowProtocol::arrived(int owner, LineKind line, int source, uint64_t expected) const {
  const uint64_t word = load(layout_.line(part(owner), line, source).word);
  return line == LineKind::credit ? word >= expected : word >> 32 == (expected & 0xffffffffu);
}

void WindowProtocol::wait_for_all(LineKind line, uint64_t expected, Status& status) {
  Wait wait(control(rank_).wait, line, expected, others_ & ~masked_, comm_->deadline());
  Backoff backoff;
  while (true) {
    for_each_rank(wait.pending, [&](int peer) {
      if (arrived(rank_, line, peer, expected)) wait.pending &= ~bit(peer);
    });
    if (wait.pending == 0) break;
    if (!backoff.pause()) continue;
    look_around(wait, status);
    if (wait.pending != 0 && Clock::now() >= wait.deadline) on_deadline(wait, status);
  }
  // A rank that the others have given up must not return as if nothing had happened.
  require_trusted(wait);
}

// Neither left out by a peer nor, where one failure ends all, behind a peer's failure.
void WindowProtocol::require_trusted(const Wait& wait) {
  for_each_rank(others_ & ~masked_, [&](int peer) {
    PeerState& state = control(peer).state;
    if ((load(state.masked) & bit(rank_)) != 0)
      end(ErrorCode::rank_masked,
          describe({.code = ErrorCode::rank_masked, .rank = rank_, .peer = peer, .waited_us = wait.waited_us()}));
    const uint64_t ended = load(state.ended);
    if (on_timeout_ == OnPeerTimeout::fail && static_cast<Ended>(ended & 0xff) == Ended::failed)
      end(static_cast<ErrorCode>(ended >> 8), fmt::format("rank {}: rank {} gave up: {}", rank_, peer, text_of(peer)));
  });
}

void WindowProtocol::look_around(Wait& wait, Status& status) {
  wait.publish();
  require_trusted(wait);
  for_each_rank(others_ & ~masked_, [&](int peer) {
    if (!masked(peer)) look_at(peer, wait, status);
  });
}

// What `peer` says of itself and of others, besides the line that this rank waits for.
void WindowProtocol::look_at(int peer, Wait& wait, Status& status) {
  PeerState& state = control(peer).state;
  // Ranks that a peer gave up are gone for this one too: the survivors stay of one mind.
  for_each_rank(load(state.masked) & others_ & ~masked_, [&](int gone) { give_up(gone, wait, status); });
  if (masked(peer)) return;

  const uint64_t ended = load(state.ended);
  const bool refused = load(state.refused_call) >= call_;
  const bool other_call =
      load(layout_
               .line(part(rank_), stage_ == ExchangeStage::dispatch ? LineKind::combine_flag : LineKind::dispatch_flag, peer)
               .call) == call_;
  // Only now: a peer that sent its line and then ended or refused a later call is as good as any.
  const bool missing = (wait.pending & bit(peer)) != 0 && !arrived(rank_, wait.line, peer, wait.expected);
  if (missing && refused) {
    fail(static_cast<ErrorCode>(load(state.refused_code)), "rank {}: rank {} refused {} {}: {}", rank_, peer, name(stage_),
         epoch_, text_of(peer));
  }
  if (missing && other_call) {
    end(ErrorCode::config_mismatch,
        fmt::format("rank {}: rank {} made another call than {} {}; all ranks must make the same calls", rank_, peer,
                    name(stage_), epoch_));
  }
  if (!missing || ended == 0) return;
  if (on_timeout_ == OnPeerTimeout::mask)
    give_up(peer, wait, status);
  else
    end(ErrorCode::peer_timeout, fmt::format("rank {}: rank {} left before {} {}", rank_, peer, name(stage_), epoch_));
}

// The rank that keeps `peer` from sending its line: itself, or whoever it waits for in turn. -1: it is too early to say.
int WindowProtocol::who_holds_up(int peer, const Wait& wait) const {
  const auto limit_us = static_cast<uint64_t>(std::chrono::microseconds(comm_->deadline()).count());
  uint64_t seen = bit(rank_);
  int at = peer;
  while (true) {
    seen |= bit(at);
    WaitStamp& stamp = control(at).wait;
    const uint64_t line = load(stamp.line), since_us = load(stamp.since_us), expected = load(stamp.expected);
    if (line == 0) return at;
    int next = -1;
    for_each_rank(load(stamp.pending) & ~seen, [&](int other) {
      if (next < 0 && !arrived(at, static_cast<LineKind>(line - 1), other, expected)) next = other;
    });
    if (next < 0) return at;  // nobody keeps it waiting, and still it does not go on
    if (load(stamp.line) != line || load(stamp.since_us) != since_us) return -1;  // it has just gone on
    if (masked(next)) return next;
    // It must have had its own full time to wait; a margin for when it is about to say so itself.
    if (now_us() - since_us < limit_us && static_cast<uint64_t>(wait.waited_us()) < 4 * limit_us) return -1;
    at = next;
  }
}

void WindowProtocol::on_deadline(Wait& wait, Status& status) {
  const auto limit = comm_->deadline();
  uint64_t guilty = 0;
  bool held_up_by_masked = false;
  for_each_rank(wait.pending, [&](int peer) {
    const int culprit = who_holds_up(peer, wait);
    if (culprit >= 0 && masked(culprit)) held_up_by_masked = true;
    if (culprit >= 0 && !masked(culprit)) guilty |= bit(culprit);
  });
  for_each_rank(guilty, [&](int peer) { give_up(peer, wait, status); });
  // Who waited for one of those has a full deadline from here on; where it is too early to say, look again soon.
  const bool fresh = guilty != 0 || held_up_by_masked;
  wait.deadline = Clock::now() + (fresh ? limit : std::max(limit / 16, std::chrono::milliseconds(1)));
}

// ---------------------------------------------------------------------------------------------
// Ends

void WindowProtocol::give_up(int peer, Wait& wait, Status& status) {
  const uint64_t word = load(layout_.line(part(rank_), wait.line, peer).word);
  const Status failure{.code = ErrorCode::peer_timeout,
                       .rank = rank_,
                       .peer = peer,
                       .expected = static_cast<int64_t>(wait.expected),
                       .got = static_cast<int64_t>(wait.line == LineKind::credit ? word : word >> 32),
                       .waited_us = wait.waited_us()};
  if (on_timeout_ == OnPeerTimeout::fail) end(ErrorCode::peer_timeout, describe(failure));
  masked_ |= bit(peer);
  wait.pending &= ~bit(peer);
  store(control(rank_).state.masked, masked_);
  record(status, failure);
}

void WindowProtocol::end(ErrorCode code, const std::string& text) {
  ended_ = std::make_unique<Error>(code, text);
  publish_text(text);
  store(control(rank_).state.ended, static_cast<uint64_t>(Ended::failed) | static_cast<uint64_t>(code) << 8);
  throw Error(*ended_);
}

void WindowProtocol::publish_text(std::string_view text) {
  char bytes[kTextWords * sizeof(uint64_t)] = {};
  std::memcpy(bytes, text.data(), std::min(text.size(), sizeof(bytes) - 1));
  // By words: a peer may still be reading what was said before.
  for (int64_t i = 0; i < kTextWords; ++i) {
    uint64_t word = 0;
    std::memcpy(&word, bytes + i * sizeof(word), sizeof(word));
    store(control(rank_).text[i], word);
  }
}

std::string WindowProtocol::text_of(int rank) const {
  char bytes[kTextWords * sizeof(uint64_t) + 1] = {};
  for (int64_t i = 0; i < kTextWords; ++i) {
    const uint64_t word = load(control(rank).text[i]);
    std::memcpy(bytes + i * sizeof(word), &word, sizeof(word));
  }
  return bytes;
}

}  // namespace mixlane
