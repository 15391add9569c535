// Who may write where and when: epochs, flags, credits, deadlines and masks of the exchange. It moves no rows.
#pragma once

#include <span>
#include <string>

#include "core/error.hpp"
#include "ops/dispatch/layout.hpp"
#include "ops/dispatch/stage.hpp"

namespace mixlane {

// One rank's side of the protocol of docs/stages/dispatch.md. A call is begin(), rows written into the own region of the
// peers' windows, post() per peer, finish().
class WindowProtocol {
 public:
  WindowProtocol(std::shared_ptr<Communicator> comm, const WindowLayout& layout, OnPeerTimeout on_timeout);
  ~WindowProtocol();
  WindowProtocol(const WindowProtocol&) = delete;
  WindowProtocol& operator=(const WindowProtocol&) = delete;

  // Throws what ended this rank's part in the group, if anything has.
  void require_usable() const;
  // A call that this rank does not make after all: the peers' same call fails at once with `error`'s words.
  void refuse(ExchangeStage stage, const Error& error);

  // Opens the next call; afterwards the own region of every peer's window may be written. Waits only if the call before
  // was not a completed one of the other stage.
  void begin(ExchangeStage stage, Status& status);
  // All rows for `peer` are in its window. Also for the own rank.
  void post(int peer, int32_t num_rows);
  // Waits for all ranks that are not masked; counts[s] = what rank s posted, 0 if it is masked.
  void finish(std::span<int32_t> counts, Status& status);

  int64_t epoch() const { return static_cast<int64_t>(epoch_); }  // of the open call, counted per stage from 1
  bool masked(int rank) const { return (masked_ >> rank & 1) != 0; }
  std::byte* part(int rank) const { return memory_->part(rank); }

 private:
  struct Wait;

  ControlPage& control(int rank) const { return layout_.control(part(rank)); }
  bool arrived(int owner, LineKind line, int source, uint64_t expected) const;
  void advance(ExchangeStage stage);
  void exchange_credits(Status& status);

  void wait_for_all(LineKind line, uint64_t expected, Status& status);
  void look_around(Wait& wait, Status& status);
  void look_at(int peer, Wait& wait, Status& status);
  void on_deadline(Wait& wait, Status& status);
  int who_holds_up(int peer, const Wait& wait) const;
  void require_trusted(const Wait& wait);

  void give_up(int peer, Wait& wait, Status& status);
  [[noreturn]] void end(ErrorCode code, const std::string& text);
  void publish_text(std::string_view text);
  std::string text_of(int rank) const;

  std::shared_ptr<Communicator> comm_;
  WindowLayout layout_;
  OnPeerTimeout on_timeout_;
  std::shared_ptr<SymmetricMemory> memory_;
  int rank_;
  uint64_t others_;  // bit per peer
  uint64_t masked_ = 0;
  ExchangeStage stage_ = ExchangeStage::dispatch;  // of the open call
  uint64_t call_ = 0;
  uint64_t epoch_ = 0;
  std::unique_ptr<Error> ended_;
};

}  // namespace mixlane
