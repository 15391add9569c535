// What a build without a GPU backend answers.
#include "core/error.hpp"
#include "stage/device.hpp"
#include "stage/sweep.hpp"

namespace mixlane::bench {

void require_gpu(Device device) {
  fail(ErrorCode::unsupported,
       "--device {0}: this build has no GPU backend; build with `cmake --preset {0}`, or use --device cpu",
       name(device.type));
}

int num_gpus() { return 0; }

std::vector<std::string> stage_names() { return {}; }

int run_stage_sweep(const BenchOptions& options) {
  require_gpu(options.chosen_device);
  return 1;
}

}  // namespace mixlane::bench
