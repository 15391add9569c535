// What a build without a GPU backend answers.
#include "comm/gpu_memory.hpp"
#include "core/error.hpp"

namespace mixlane {

std::shared_ptr<SymmetricMemory> allocate_on_gpu(Communicator&, RankHome, int64_t, std::string_view what, Device device) {
  fail(ErrorCode::unsupported, "this build has no {} backend for {}; use a cpu device", name(device.type), what);
}

}  // namespace mixlane
