#include "ops/experts/cpu/matmul_library.hpp"

#include <dlfcn.h>

#include "core/error.hpp"

namespace mixlane {
namespace {

constexpr const char* kModule = "mixlane_onednn.so";

// The folder of the library or program that this code is in.
std::filesystem::path own_folder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&own_folder), &info) == 0 || !info.dli_fname) return {};
  return std::filesystem::path(info.dli_fname).parent_path();
}

}  // namespace

MatmulLibrary::MatmulLibrary(const Env& env) {
  const std::filesystem::path module = (env.modules.empty() ? own_folder() : env.modules) / kModule;
  // Never closed: oneDNN keeps thread-local memory.
  void* handle = dlopen(module.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    missing_ = fmt::format(
        "can't load {} ({}); install oneDNN (Debian 12: libdnnl2, Ubuntu 24.04: libdnnl3) and set MIXLANE_MODULES to the "
        "folder of {}",
        module.string(), dlerror(), kModule);
    return;
  }
  make_ = reinterpret_cast<MakeMatmul*>(dlsym(handle, "mixlane_make_matmul"));
  if (!make_) {
    missing_ = fmt::format("{} has no symbol mixlane_make_matmul; it is of another version, install Mixlane again",
                           module.string());
    return;
  }
  const char* error = nullptr;
  threads_.emplace_back(make_(&error));
  if (!threads_.front()) missing_ = fmt::format("{}; use experts.reference", error);
}

void MatmulLibrary::prepare(int num_threads) {
  while (threads_.size() < static_cast<size_t>(num_threads)) {
    const char* error = nullptr;
    threads_.emplace_back(make_(&error));
    if (!threads_.back()) {
      threads_.pop_back();
      fail(ErrorCode::internal, "oneDNN for thread {}: {}", threads_.size(), error);
    }
  }
}

}  // namespace mixlane
