// Received rows that a kernel may read before the dispatch is over.
#pragma once

#include <cstdint>

namespace mixlane {

// Where a kernel between dispatch_send and dispatch_receive sees which rows have come (DispatcherConfig::early_rows). A
// source sends its rows in blocks, in slot order, each row with its scales, ids and weights. How many blocks, and of how
// many rows, the source decides in each call: dispatch.throughput takes the rows of up to 8 of its tokens, or a 512th of
// them; a block may have no row. Nothing is ever cleared: words count if they carry the call's number, so graphs replay.
// Plain pointers and numbers, to be handed to kernels; mixlane/ready_rows.cuh has the waits. Device memory of this rank.
//
// The call's number is *closed + 1, from the end of the dispatcher's call before until dispatch_receive. With `number`:
//   sources[s * source_stride]           number << 32 | flags << 30 | blocks that source s sends
//   blocks[s * block_stride + b]         number << 32 | rows up to the end of block b: when it is there, all of them are
// Each is to be read by a 64-bit acquire load at system scope; rows behind it by any loads of the threads it is handed on
// to. The own rank is a source like any other.
struct ReadyRows {
  const uint64_t* sources = nullptr;
  const uint64_t* blocks = nullptr;
  const uint32_t* closed = nullptr;    // dispatches that are over
  const uint32_t* left_out = nullptr;  // bit r: nothing comes from rank r; bit 31: from nobody
  int64_t source_stride = 0;
  int64_t block_stride = 0;
  uint64_t deadline_ns = 0;  // of a wait; what is behind it is reported by dispatch_receive

  bool given() const { return blocks != nullptr; }
};

}  // namespace mixlane
