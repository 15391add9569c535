// What a build without a GPU backend answers.
#include "ops/dispatch/backend.hpp"

namespace mixlane {

std::unique_ptr<ExchangeBackend> make_gpu_backend(Context& context, std::shared_ptr<Communicator>, const DispatcherConfig&) {
  fail(ErrorCode::unsupported, "this build has no {} backend; use a cpu device", name(context.device().type));
}

std::span<const VariantInfo> dispatch_gpu_variants() { return {}; }
std::span<const VariantInfo> combine_gpu_variants() { return {}; }

}  // namespace mixlane
