// What a build without a kernel profiler answers.
#include "core/error.hpp"
#include "profile/kernel_profile.hpp"

namespace mixlane::bench {

struct KernelProfiler::Library {};

KernelProfiler::KernelProfiler(const Env&) : missing_(MIXLANE_NO_PROFILER) {}
KernelProfiler::~KernelProfiler() = default;

void KernelProfiler::start() { fail(ErrorCode::missing_component, "{}", missing_); }
KernelProfile KernelProfiler::stop() { fail(ErrorCode::missing_component, "{}", missing_); }

}  // namespace mixlane::bench
