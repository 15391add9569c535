// `mixlane tune` of a build without a GPU backend.
#include "core/error.hpp"
#include "tune/options.hpp"

namespace mixlane::bench {

int tune_stage(const TuneOptions& options) {
  fail(ErrorCode::unsupported,
       "tuning {} times its GPU variants, and this build has no GPU backend; build with `cmake --preset cuda` or hip",
       options.stage);
}

}  // namespace mixlane::bench
