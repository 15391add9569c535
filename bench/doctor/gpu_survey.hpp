// The GPUs of this machine, what they reach, and what is missing to use them fully.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "core/env.hpp"
#include "doctor/examine.hpp"
#include "doctor/gpu_peaks.hpp"
#include "gpu/runtime.hpp"

namespace mixlane::bench {

struct GpuSurvey {
  struct Gpu {
    Device device;
    gpu::DeviceProperties properties;
    Peaks peaks;
  };
  struct Pair {
    Device first, second;
    PeerPeaks peaks;
  };
  std::string no_gpu;  // why there is none, and `advice` what to do; empty if there are some
  std::string advice;
  std::vector<Gpu> gpus;
  std::vector<Pair> pairs;      // every two of them
  std::string no_kernel_times;  // what the profiler misses
  std::string collectives;      // "NCCL 2.28.3"; empty: not installed
};

// Measures all GPUs and all pairs, one after the other.
GpuSurvey survey_gpus(const Env& env, const GpuPeakOptions& options = {});

// One finding per line of the report, for GPUs behind those of the machine. Pure.
std::vector<Finding> examine(const GpuSurvey& survey);

// {"gpus": [...], "pairs": [...]} with the units in the keys, as in result files.
nlohmann::ordered_json to_json(const GpuSurvey& survey);

}  // namespace mixlane::bench
