// What GPUs can do, measured. docs/doctor.md says what each peak is.
#pragma once

#include <string>
#include <vector>

#include "mixlane/core.hpp"
#include "results/record.hpp"

namespace mixlane::bench {

struct GpuPeakOptions {
  double seconds = 1.0;              // of measuring a GPU's own peaks, and a quarter of it a pair's
  int64_t bytes = int64_t{1} << 30;  // of a buffer, well beyond the caches; a GPU needs two, a multiple of 32 KiB
};

// A GPU's own peaks. What can't be measured is 0 and has its reason in `skipped`.
Peaks measure_gpu(Device device, const GpuPeakOptions& options = {});

// Of two GPUs that work at once, each towards the other: one direction's.
struct PeerPeaks {
  double write_gbs = 0;  // kernels that store
  double read_gbs = 0;   // kernels that load
  double copy_engine_gbs = 0;
  double flag_us = 0;   // from a store to the other's having seen it
  std::string problem;  // why they are 0
};
PeerPeaks measure_pair(Device first, Device second, const GpuPeakOptions& options = {});

// Of a group of GPUs of this machine: the slowest one's, and the slowest pair's. One GPU after the other; none of them
// should be at work.
Peaks measure_gpu_peaks(const std::vector<Device>& devices, const GpuPeakOptions& options = {});

}  // namespace mixlane::bench
