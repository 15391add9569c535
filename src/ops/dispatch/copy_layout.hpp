// Symmetric bytes of one rank beside its window that the copy_engine variants need.
#pragma once

#include "ops/dispatch/copy_args.hpp"
#include "ops/dispatch/gpu_layout.hpp"

namespace mixlane {

struct CopyStageLayout {
  int64_t num_ready = 0;  // groups of rows per source
  int64_t partials_at = 0;
  int64_t total_bytes = 0;

  // `config` complete.
  CopyStageLayout(const DispatcherConfig& config, int num_ranks)
      : num_ready((config.capacity + exchange_gpu::kReadyRows - 1) / exchange_gpu::kReadyRows),
        partials_at((num_ranks * num_ready * 4 + 63) / 64 * 64),
        total_bytes(partials_at +
                    int64_t{num_ranks} * config.capacity * GpuWindowLayout(config, num_ranks).records.partial_stride) {}
};

}  // namespace mixlane
