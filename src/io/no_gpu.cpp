// What a build without a GPU backend answers.
#include "io/weight_memory.hpp"

namespace mixlane {

std::unique_ptr<WeightMemory> open_gpu_weight_memory(const Context& context, const Staging&) {
  fail(ErrorCode::unsupported, "this build has no {} backend; use a cpu device", name(context.device().type));
}

}  // namespace mixlane
