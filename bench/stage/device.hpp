// The GPU that stages are measured on.
#pragma once

#include <map>
#include <string>

#include "mixlane/core.hpp"

namespace mixlane::bench {

// Throws unsupported with what is missing (this build's backend, a driver, a GPU) and how to go on without it, or
// invalid_argument where there is no such index.
void require_gpu(Device device);

// That this process sees.
int num_gpus();

// gpu, gpu_index, gpu_architecture, gpu_multiprocessors, gpu_l2, gpu_memory, gpu_driver, gpu_runtime.
void add_gpu_environment(Device device, std::map<std::string, std::string>& environment);

}  // namespace mixlane::bench
