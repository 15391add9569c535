// What the exchange kernels get: plain pointers and numbers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gpu/divider.hpp"
#include "mixlane/core.hpp"

namespace mixlane::exchange_gpu {

inline constexpr int kMaxRanks = 8;
// Of one launch; each sending block has flags of its own.
inline constexpr uint32_t kMaxBlocks = 1024;
inline constexpr uint32_t kMaxSendBlocks = 512;
inline constexpr uint32_t kMaxThreads = 512;
// A row's flag has a word per quarter of the row, since up to four blocks may send it.
inline constexpr uint32_t kRowParts = 4, kLog2RowParts = 2;
// A rank with so few tokens gets its partial sums in an inbox (inbox.cuh), where they need no flags.
inline constexpr int kInboxRows = 512;

// A rank with so few tokens sends its rows in lines (lines.cuh). Two of them, 256 bytes, hold so many 16-byte packets.
inline constexpr int kLineRows = 32;
inline constexpr uint32_t kPacketsOfPair = 15;

// What rank s tells the owner of a window besides rows; lies in the window, written by s alone.
struct alignas(64) SourceLine {
  uint64_t dispatch_header;  // epoch << 32 | kWantsInbox | blocks that send, or kInLines | rows
  uint32_t credit;           // number of the call before which s has read everything
  uint32_t masked;           // PeerMark
  uint32_t combine_header;   // epoch of the combine that s has begun
};

inline constexpr uint32_t kWantsInbox = 1u << 31;
inline constexpr uint32_t kInLines = 1u << 30;

// What a rank has done to another one, in SourceLine::masked.
inline constexpr uint32_t kLeftOut = 1;
inline constexpr uint32_t kEndedBy = 2;  // + r: it takes part in no call any more because of rank r

// Where this rank stands. All blocks of a launch read it, the one that closes the call advances it when all have.
struct alignas(16) CallState {
  uint32_t dispatch_epoch;
  uint32_t combine_epoch;
  uint32_t last_stage;   // 0: no call yet; else 1 + ExchangeStage
  uint32_t num_readers;  // blocks of this launch that have read the above
  // Taken in calls of even and of odd epochs, beyond the first one of each block of the grid. Who closes a call, while other
  // blocks may still work, clears those of the next one.
  uint32_t sent[2] = {};    // dispatch.throughput: blocks of rows
  uint32_t pushed[2] = {};  // combine.throughput: groups of rows
  uint32_t added[2] = {};   // and of tokens
};

struct Window {
  std::byte* parts[kMaxRanks] = {};
  int32_t rank = 0;
  int32_t num_ranks = 0;
  int32_t capacity = 0;
  int64_t done_at = 0;       // u64 [R][kMaxSendBlocks]: dispatch epoch << 32 | rows up to the end of that block
  int64_t row_flags_at = 0;  // u32 [R][C][kRowParts]: combine epoch
  int64_t records_at = 0;    // [R][C]
  int64_t record_stride = 0;
  int64_t partials_at = 0;  // [R][C]
  int64_t partial_stride = 0;
  int64_t lines_at = 0;  // [R][line_rows]: records in lines
  int64_t line_stride = 0;
  int32_t line_rows = 0;
  uint32_t line_pairs = 0;      // of a record
  uint32_t record_packets = 0;  // the last one may be filled up
  int64_t inbox_at = 0;         // [R][inbox_rows], rows like partials
  int32_t inbox_rows = 0;
};

// What dispatch leaves behind for combine, in this rank's own memory.
struct DeviceRouting {
  int32_t* slots = nullptr;        // [max_tokens, num_ranks], -1 = no row
  int32_t* recv_count = nullptr;   // [num_ranks]
  int32_t* sent_count = nullptr;   // [num_ranks]
  int32_t* num_tokens = nullptr;   // [1]
  uint32_t* with_inbox = nullptr;  // [1], bit r: rank r wants its partial sums in its inbox
};

struct Exchange {
  Window window;
  CallState* state = nullptr;
  uint32_t* masked = nullptr;  // bit r: rank r is left out; kEnded: no call does anything any more
  Status* status = nullptr;
  Status* end = nullptr;  // host memory: what ended this rank's part in the group
  uint64_t deadline_ns = 0;
  bool fail_on_timeout = true;
  uint32_t jitter_ns = 0;    // tests: blocks are late by up to so long
  uint32_t stall_epoch = 0;  // tests: in this call of the stage blocks wait before they send
  uint64_t stall_ns = 0;
  DeviceRouting routing;
};
inline constexpr uint32_t kEnded = 1u << 31;

struct Matrix {
  const std::byte* data = nullptr;
  int64_t stride = 0;  // bytes from row to row
};

// From an expert's id to its rank.
struct ExpertOwners {
  const uint8_t* table = nullptr;  // [num_experts]; null: contiguous
  uint32_t num_experts = 0;
  uint32_t larger_end = 0;  // experts of the ranks that own one more than the others
  gpu::Divider by_larger;
  gpu::Divider by_smaller;
  uint32_t num_larger = 0;  // ranks
};

enum class Payload : uint8_t { copy, quantize_1x128, quantize_row, quantize_1x32 };
// Scales that a block makes for each row and puts together in shared memory: f32, or bytes (e8m0), four to a word.
constexpr bool makes_scale_rows(Payload payload) {
  return payload == Payload::quantize_1x128 || payload == Payload::quantize_1x32;
}

struct DispatchKernelArgs {
  Exchange exchange;
  Matrix hidden;
  const void* scales = nullptr;  // of quantised input: f32, or bytes (e8m0)
  int64_t scale_row_stride = 0;
  int64_t scale_col_stride = 0;
  const int32_t* ids = nullptr;
  const float* weights = nullptr;
  const int32_t* num_tokens = nullptr;  // null: all rows
  uint32_t num_rows = 0;
  uint32_t num_topk = 0;
  bool wants_inbox = false;     // for combine
  bool inbox_by_count = false;  // only if so few tokens count
  bool whole_rows = false;      // no block sends a part of a row: what a block flags is read when its flag has come
  uint32_t num_receivers = 0;   // blocks that copy the peers' lines to their places; 0: the last block does
  bool plain_ids = false;       // eight per token at multiples of 16 bytes, as many experts on every rank in their order
  uint32_t num_packets = 0;     // 16 bytes of input each, of a row; a multiple of 16 if quantised
  uint32_t num_values = 0;      // of a row
  uint32_t payload_bytes = 0;
  uint32_t num_scale_words = 0;
  uint32_t num_byte_scales = 0;  // 0: the scales are f32
  uint32_t scale_rows = 1;       // makes_scale_rows: rows of scales between barriers, a power of two
  ExpertOwners owners;
};

// Where the partial sums of this rank come from.
enum class PartialSource : uint8_t { pairs, reduced_bf16, reduced_f32 };

struct CombineKernelArgs {
  Exchange exchange;
  PartialSource source = PartialSource::pairs;
  Matrix rows;  // experts' rows, or reduced ones
  uint32_t num_rows = 0;
  const int32_t* pair_slots = nullptr;
  uint32_t num_topk = 0;
  bool apply_weights = true;
  int64_t weights_at = 0;  // in a record
  Matrix addend;
  DType addend_dtype = DType::bf16;
  std::byte* output = nullptr;
  int64_t output_stride = 0;
  DType output_dtype = DType::bf16;
  uint32_t num_octets = 0;        // of a row
  uint32_t num_tokens = 0;        // rows of the output
  bool counts_on_device = false;  // fewer of them may count
  bool uses_inbox = false;        // this rank's dispatch said that it wants its partial sums there
  bool inbox_by_count = false;    // or did so if so few of its tokens counted
  uint32_t num_send_blocks = 0;
};

}  // namespace mixlane::exchange_gpu
