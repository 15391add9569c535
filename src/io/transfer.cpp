#include "io/transfer.hpp"

#include <algorithm>
#include <cstring>

#include "core/numeric.hpp"

namespace mixlane {
namespace {

constexpr int64_t kScratchBytes = 256 << 10;  // stays in a core's cache between reading and writing
constexpr int64_t kDealtRowBytes = 256;       // shorter rows cost the system more than a copy does

template <class Bits>
Bits bits_at(const std::byte* values, int64_t index) {
  Bits value;
  std::memcpy(&value, values + index * static_cast<int64_t>(sizeof(Bits)), sizeof(Bits));
  return value;
}

// Load(values, i) is an f32.
template <class Load>
void convert_with(Load&& load, const std::byte* from, int64_t count, DType to, std::byte* into) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = load(from, i);
    if (to == DType::f32) {
      std::memcpy(into + i * 4, &value, 4);
    } else {
      const uint16_t bits = f32_to_bf16(value);
      std::memcpy(into + i * 2, &bits, 2);
    }
  }
}

void convert_values(DType dtype, const std::byte* from, int64_t count, DType to, std::byte* into) {
  if (dtype == DType::f32)
    convert_with([](const std::byte* v, int64_t i) { return bits_at<float>(v, i); }, from, count, to, into);
  else if (dtype == DType::f16)
    convert_with([](const std::byte* v, int64_t i) { return f16_to_f32(bits_at<uint16_t>(v, i)); }, from, count, to, into);
  else
    convert_with([](const std::byte* v, int64_t i) { return bf16_to_f32(bits_at<uint16_t>(v, i)); }, from, count, to, into);
}

// The same rows, one value each: they can be cut anywhere.
RowRun in_values(RowRun run) {
  const int64_t value_bytes = size_bytes(run.dtype(), 1);
  run.count = run.bytes() / value_bytes;
  run.row_bytes = value_bytes;
  return run;
}

// Rows that the system itself deals out: no copy in between.
void deal_rows(const RowRun& run, const std::array<std::byte*, 2>& into, std::vector<iovec>& parts) {
  parts.clear();
  for (int64_t row = 0; row < run.count; ++row)
    parts.push_back(
        {into[static_cast<size_t>(row % run.ways)] + row / run.ways * run.row_bytes, static_cast<size_t>(run.row_bytes)});
  read_tensor(run.tensor, run.offset, run.bytes(), parts);
}

}  // namespace

bool is_plain(DType dtype) { return dtype == DType::bf16 || dtype == DType::f16 || dtype == DType::f32; }

int64_t Transfer::row_bytes() const {
  return converts() ? from.row_bytes / size_bytes(from.dtype(), 1) * size_bytes(dtype, 1) : from.row_bytes;
}

std::vector<Chunk> cut(const std::vector<Transfer>& transfers, int64_t max_bytes) {
  std::vector<Chunk> chunks;
  for (Transfer transfer : transfers) {
    if (transfer.from.ways == 1) transfer.from = in_values(transfer.from);
    const RowRun& run = transfer.from;
    const int64_t row_bytes = transfer.row_bytes(), deal_bytes = run.ways * row_bytes;
    if (deal_bytes > max_bytes)
      fail(ErrorCode::unsupported, "{}: {} rows of {} bytes are to be taken apart; they may have {} bytes together",
           to_string(run.tensor), run.ways, row_bytes, max_bytes);
    const int64_t num_deals = run.count / run.ways, step = deal_bytes > 0 ? max_bytes / deal_bytes : num_deals;
    for (int64_t first = 0; first < num_deals; first += step) {
      Chunk chunk{run, transfer.dtype, {}, transfer.allocation, 0};
      chunk.from.offset += first * run.ways * run.row_bytes;
      chunk.from.count = std::min(step, num_deals - first) * run.ways;
      chunk.way_bytes = chunk.from.count / run.ways * row_bytes;
      for (int way = 0; way < run.ways; ++way)
        chunk.into[static_cast<size_t>(way)] = transfer.into + (way * num_deals + first) * row_bytes;
      chunks.push_back(chunk);
    }
  }
  return chunks;
}

void read_chunk(const Chunk& chunk, const std::array<std::byte*, 2>& into, ChunkScratch& scratch) {
  const RowRun& run = chunk.from;
  const bool converts = chunk.dtype != run.dtype();
  if (run.ways == 1 && !converts) return read_tensor(run.tensor, run.offset, {into[0], static_cast<size_t>(run.bytes())});
  if (!converts && run.row_bytes >= kDealtRowBytes) return deal_rows(run, into, scratch.parts);
  const int64_t to_row_bytes = chunk.bytes() / run.count;
  const int64_t values_per_row = run.row_bytes / size_bytes(run.dtype(), 1);
  const int64_t step = std::max<int64_t>(kScratchBytes / run.row_bytes, 1);
  scratch.bytes.resize(static_cast<size_t>(std::min(step, run.count) * run.row_bytes));
  for (int64_t first = 0; first < run.count; first += step) {
    const int64_t count = std::min(step, run.count - first);
    read_tensor(run.tensor, run.offset + first * run.row_bytes,
                {scratch.bytes.data(), static_cast<size_t>(count * run.row_bytes)});
    if (run.ways == 1) {
      convert_values(run.dtype(), scratch.bytes.data(), count * values_per_row, chunk.dtype, into[0] + first * to_row_bytes);
      continue;
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = first + i;
      std::byte* to = into[static_cast<size_t>(row % run.ways)] + row / run.ways * to_row_bytes;
      const std::byte* from = scratch.bytes.data() + i * run.row_bytes;
      if (converts)
        convert_values(run.dtype(), from, values_per_row, chunk.dtype, to);
      else
        std::memcpy(to, from, static_cast<size_t>(run.row_bytes));
    }
  }
}

}  // namespace mixlane
