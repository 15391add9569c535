// The bytes of one rank's window on a GPU; docs/stages/dispatch.md has the picture.
#pragma once

#include "ops/dispatch/device_args.hpp"
#include "ops/dispatch/layout.hpp"

namespace mixlane {

struct GpuWindowLayout {
  WindowLayout records;  // a record's and a partial row's inside; its offsets are the CPU's
  int64_t done_at = 0;
  int64_t row_flags_at = 0;
  int64_t records_at = 0;
  int64_t partials_at = 0;
  int64_t total_bytes = 0;

  GpuWindowLayout(const DispatcherConfig& config, int num_ranks) : records(config, num_ranks) {
    const int64_t rows = int64_t{num_ranks} * config.capacity;
    done_at = num_ranks * static_cast<int64_t>(sizeof(exchange_gpu::SourceLine));
    row_flags_at = done_at + num_ranks * static_cast<int64_t>(exchange_gpu::kMaxSendBlocks * sizeof(uint64_t));
    // Rows start at multiples of 64 bytes.
    records_at = (row_flags_at + rows * static_cast<int64_t>(exchange_gpu::kRowParts * sizeof(uint32_t)) + 63) / 64 * 64;
    partials_at = records_at + rows * records.record_stride;
    total_bytes = partials_at + rows * records.partial_stride;
  }
};

}  // namespace mixlane
