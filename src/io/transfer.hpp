// Rows of a checkpoint's tensors on their way into memory, cut into chunks that threads bring side by side.
#pragma once

#include <array>
#include <vector>

#include "io/checkpoint.hpp"

namespace mixlane {

// Rows of a tensor that lie behind each other in the file.
struct RowRun {
  CheckpointTensor tensor;
  int64_t offset = 0;  // of the first row, inside the tensor
  int64_t row_bytes = 0;
  int64_t count = 0;
  int ways = 1;  // 2: rows are dealt: in memory the even ones come first, then the odd ones; `count` is a multiple of it

  DType dtype() const { return *tensor.entry->dtype; }
  int64_t bytes() const { return count * row_bytes; }
};

// Where a run goes: all rows one behind the other. Values of bf16, f16 and f32 tensors become `dtype`, which is bf16 or f32
// or the tensor's own; everything else goes as it is.
struct Transfer {
  RowRun from;
  DType dtype = DType::u8;
  std::byte* into = nullptr;
  // What `into` lies in, if its neighbours may be copied together with it.
  const void* allocation = nullptr;

  bool converts() const { return dtype != from.dtype(); }
  int64_t row_bytes() const;  // in memory
};

// The tensor's bytes as they are.
inline Transfer as_stored(const RowRun& run, std::byte* into, const void* allocation = nullptr) {
  return {run, run.dtype(), into, allocation};
}

bool is_plain(DType dtype);  // bf16, f16 or f32

// A part of a transfer: some of its rows, and where those of each way go.
struct Chunk {
  RowRun from;
  DType dtype = DType::u8;
  std::array<std::byte*, 2> into{};
  const void* allocation = nullptr;
  int64_t way_bytes = 0;  // in memory, of each way

  int64_t bytes() const { return from.ways * way_bytes; }
};

// Covers the transfers in order. A chunk takes at most `max_bytes` of memory; unsupported if a pair of rows takes more.
std::vector<Chunk> cut(const std::vector<Transfer>& transfers, int64_t max_bytes);

// A thread's own memory for what can't go straight into its place.
struct ChunkScratch {
  std::vector<std::byte> bytes;
  std::vector<iovec> parts;
};
// Reads a chunk's rows into `into`, one address per way. Throws io_error naming file and tensor.
void read_chunk(const Chunk& chunk, const std::array<std::byte*, 2>& into, ChunkScratch& scratch);

}  // namespace mixlane
