// The bytes of one rank's window on a GPU; docs/stages/dispatch.md has the picture.
#pragma once

#include <algorithm>

#include "core/math.hpp"
#include "ops/dispatch/gpu/device_args.hpp"
#include "ops/dispatch/layout.hpp"

namespace mixlane {

struct GpuWindowLayout {
  WindowLayout records;  // a record's and a partial row's inside; its offsets are the CPU's
  int64_t done_at = 0;
  int64_t row_flags_at = 0;
  int line_rows = 0;
  uint32_t line_pairs = 0;
  uint32_t record_packets = 0;
  int64_t lines_at = 0;
  int64_t line_stride = 0;
  int inbox_rows = 0;
  int64_t inbox_at = 0;
  int64_t records_at = 0;
  int64_t partials_at = 0;
  int64_t total_bytes = 0;

  GpuWindowLayout(const DispatcherConfig& config, int num_ranks) : records(config, num_ranks) {
    const int64_t rows = int64_t{num_ranks} * config.capacity;
    done_at = num_ranks * static_cast<int64_t>(sizeof(exchange_gpu::SourceLine));
    row_flags_at = done_at + num_ranks * static_cast<int64_t>(exchange_gpu::kMaxSendBlocks * sizeof(uint64_t));
    // What crosses a link goes in pieces of 128 bytes at multiples of 128: rows start there.
    const auto rounded_up = [](int64_t bytes) { return (bytes + 127) / 128 * 128; };
    records.record_stride = rounded_up(records.record_bytes);
    records.partial_stride = rounded_up(records.partial_bytes);
    lines_at = rounded_up(row_flags_at + rows * static_cast<int64_t>(exchange_gpu::kRowParts * sizeof(uint32_t)));
    // Rows in lines are not announced: they are not at their places before the call's last half.
    line_rows = config.early_rows ? 0 : std::min(config.capacity, exchange_gpu::kLineRows);
    record_packets = static_cast<uint32_t>(ceil_div(records.record_bytes, int64_t{16}));
    line_pairs = ceil_div(record_packets, exchange_gpu::kPacketsOfPair);
    line_stride = int64_t{line_pairs} * 256;
    inbox_at = lines_at + int64_t{num_ranks} * line_rows * line_stride;
    if (config.combine_wire == CombineWire::bf16) inbox_rows = std::min(config.capacity, exchange_gpu::kInboxRows);
    records_at = inbox_at + int64_t{num_ranks} * inbox_rows * records.partial_stride;
    partials_at = records_at + rows * records.record_stride;
    total_bytes = partials_at + rows * records.partial_stride;
  }
};

}  // namespace mixlane
