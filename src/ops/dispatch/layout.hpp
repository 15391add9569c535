// The bytes of one rank's part of the symmetric memory; docs/stages/dispatch.md has the picture.
#pragma once

#include "mixlane/dispatch.hpp"
#include "mixlane/quant.hpp"

namespace mixlane {

// What one rank says to all: written by the owner of the part, read by everyone. All words are accessed atomically.
struct alignas(64) PeerState {
  uint64_t masked;        // bit r: this rank has left rank r out
  uint64_t refused_call;  // the last call that this rank refused before it sent anything
  uint64_t refused_code;  // its ErrorCode
  uint64_t ended;         // Ended, ErrorCode << 8: this rank takes part in no later call
};
enum class Ended : uint8_t { no, left, failed };

// Whom a rank waits for, so that others can find out who holds everybody up.
struct alignas(64) WaitStamp {
  uint64_t line;      // 1 + LineKind; 0 = not waiting
  uint64_t pending;   // bit r: rank r's line has not arrived
  uint64_t expected;  // the word it waits for
  uint64_t since_us;  // on the clock that all processes of a host share
};

// Where this rank stands. It lies here rather than in the host's objects so that a device can advance it by itself.
struct alignas(64) Epochs {
  uint64_t calls;
  uint64_t stage[2];  // calls per ExchangeStage
  uint64_t chain;     // Chain
};
// What the call before was; a call is safe without credits only behind a completed call of the other stage.
enum class Chain : uint8_t { fresh, dispatch, combine, broken };

inline constexpr int64_t kTextWords = 96;

struct ControlPage {
  PeerState state;
  WaitStamp wait;
  Epochs epochs;
  uint64_t text[kTextWords];  // why the rank refused or failed, zero terminated
};

// One word from one rank to one other, alone on its cache line.
struct alignas(64) Line {
  uint64_t word;  // flags: epoch << 32 | rows; credit: the number of a call
  uint64_t call;  // flags: the number of the call, to tell a peer that makes other calls from a slow one
};
enum class LineKind : uint8_t { dispatch_flag, combine_flag, credit };
inline constexpr int kNumLineKinds = 3;

struct WindowLayout {
  int num_ranks = 0;
  int64_t capacity = 0;

  // Record = payload | scales | ids | weights, offsets from its start.
  int64_t payload_bytes = 0;
  int64_t num_scales = 0;  // per record
  DType scale_dtype = DType::f32;
  int64_t scale_words = 0;  // of 4 bytes; the last one may be filled up
  int64_t ids_at = 0;
  int64_t weights_at = 0;
  int64_t record_bytes = 0;   // without padding: what is sent
  int64_t record_stride = 0;  // a multiple of 64
  int64_t partial_bytes = 0;  // values, then scales
  int64_t partial_scales_at = 0;
  int64_t partial_stride = 0;

  // Offsets in a rank's part.
  int64_t records_at = 0;
  int64_t partials_at = 0;
  int64_t total_bytes = 0;

  static constexpr int64_t kControlBytes = 4096;

  // `config` complete and valid.
  WindowLayout(const DispatcherConfig& config, int num_ranks);

  ControlPage& control(std::byte* part) const { return *reinterpret_cast<ControlPage*>(part); }
  Line& line(std::byte* part, LineKind kind, int source) const {
    return reinterpret_cast<Line*>(part + kControlBytes)[static_cast<int>(kind) * num_ranks + source];
  }
  std::byte* record(std::byte* part, int source, int64_t slot) const {
    return part + records_at + (source * capacity + slot) * record_stride;
  }
  std::byte* partial(std::byte* part, int source, int64_t slot) const {
    return part + partials_at + (source * capacity + slot) * partial_stride;
  }
};
static_assert(sizeof(ControlPage) <= WindowLayout::kControlBytes && sizeof(Line) == 64);

DType wire_dtype(WireFormat wire);
// What quantize() calls the wire's scales; group_1x128 for bf16, which has none.
ScaleGroup scale_group(WireFormat wire);
DType wire_dtype(CombineWire wire);

// A part's records, the first of which lies at `first`, as columns of [num_ranks * capacity] rows; recv_count is left out.
ReceivedRows columns_of(const WindowLayout& layout, const DispatcherConfig& config, std::byte* first, Device device = {});

// Fills in capacity and expert_rank. Throws invalid_argument naming the field, its value and what is allowed.
DispatcherConfig completed(const DispatcherConfig& config, int num_ranks);

}  // namespace mixlane
