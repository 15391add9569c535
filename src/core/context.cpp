#include <sched.h>

#include "core/arena.hpp"
#include "core/env.hpp"
#include "core/error.hpp"
#include "core/notices.hpp"
#include "core/stage_states.hpp"

namespace mixlane {

struct Context::Impl {
  Device device;
  int num_threads;
  Env env;
  Arena arena;
  StageStates states{};
};

namespace {

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

int pick_num_threads(int wanted, const Env& env) {
  if (wanted < 0) fail(ErrorCode::invalid_argument, "num_threads is {}; it must be 0 (all cores) or more", wanted);
  if (wanted > 0) return wanted;
  return env.num_threads > 0 ? env.num_threads : usable_cores();
}

}  // namespace

Context::Context(const ContextOptions& options) {
  Env env = Env::read();
  const int num_threads = pick_num_threads(options.num_threads, env);
  impl_.reset(new Impl{options.device, num_threads, std::move(env), Arena(options.device)});
}

Context::~Context() = default;
Context::Context(Context&&) noexcept = default;
Context& Context::operator=(Context&&) noexcept = default;

Device Context::device() const { return impl_->device; }
int Context::num_threads() const { return impl_->num_threads; }
Arena& Context::arena() { return impl_->arena; }
const Env& Context::env() const { return impl_->env; }
StageStates& Context::states() const { return impl_->states; }
const std::vector<std::string>& Context::notices() const { return notices_of(*this).lines; }

}  // namespace mixlane
