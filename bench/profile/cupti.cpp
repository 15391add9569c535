#include <cupti.h>
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <mutex>

#include "core/error.hpp"
#include "measure/clock.hpp"
#include "profile/kernel_names.hpp"
#include "profile/kernel_profile.hpp"

namespace mixlane::bench {

struct KernelProfiler::Library {
  decltype(&cuptiActivityEnable) enable = nullptr;
  decltype(&cuptiActivityDisable) disable = nullptr;
  decltype(&cuptiActivityFlushAll) flush = nullptr;
  decltype(&cuptiActivityGetNextRecord) next_record = nullptr;
  decltype(&cuptiActivityGetNumDroppedRecords) num_dropped = nullptr;
  decltype(&cuptiActivityRegisterCallbacks) register_callbacks = nullptr;
  decltype(&cuptiGetTimestamp) timestamp = nullptr;
  decltype(&cuptiGetResultString) describe = nullptr;

  // The first symbol that `handle` does not have, or nullptr.
  const char* load(void* handle);
  void check(CUptiResult result, const char* call) const;
};

namespace {

// Up to the graph's id all versions of the record since CUDA 11.2 are laid out alike.
using KernelRecord = CUpti_ActivityKernel9;

constexpr size_t kBufferBytes = size_t{1} << 20;
constexpr size_t kBufferAlignment = 8;  // of activity records

// CUPTI's callbacks carry no pointer of ours, so what they fill belongs to the process. Never destroyed: CUPTI may call
// while the process exits.
struct Recording {
  std::mutex mutex;
  decltype(&cuptiActivityGetNextRecord) next_record = nullptr;
  decltype(&cuptiActivityGetNumDroppedRecords) num_dropped = nullptr;
  std::atomic<bool> running = false;
  KernelProfile profile;
};
Recording& recording() {
  static auto* const instance = new Recording;
  return *instance;
}

void CUPTIAPI give_buffer(uint8_t** buffer, size_t* size, size_t* max_records) {
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(kBufferAlignment, kBufferBytes));
  *size = *buffer ? kBufferBytes : 0;
  *max_records = 0;  // as many as fit
}

KernelSpan to_span(const KernelRecord& record) {
  KernelSpan span;
  span.symbol = record.name ? record.name : "";
  span.begin_ns = static_cast<int64_t>(record.start);
  span.end_ns = static_cast<int64_t>(record.end);
  span.device = static_cast<int>(record.deviceId);
  span.stream = record.streamId;
  span.grid = {record.gridX, record.gridY, record.gridZ};
  span.block = {record.blockX, record.blockY, record.blockZ};
  span.graph_node = record.graphNodeId;
  return span;
}

void CUPTIAPI take_buffer(CUcontext context, uint32_t stream, uint8_t* buffer, size_t, size_t valid_bytes) {
  Recording& to = recording();
  const std::lock_guard lock(to.mutex);
  CUpti_Activity* record = nullptr;
  while (valid_bytes > 0 && to.next_record(buffer, valid_bytes, &record) == CUPTI_SUCCESS)
    // A kernel that has not run to its end has no times.
    if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL)
      if (const auto* kernel = reinterpret_cast<const KernelRecord*>(record); to.running && kernel->end > 0)
        to.profile.spans.push_back(to_span(*kernel));
  size_t dropped = 0;
  if (to.num_dropped(context, stream, &dropped) == CUPTI_SUCCESS && to.running)
    to.profile.num_dropped += static_cast<int64_t>(dropped);
  std::free(buffer);
}

void* open_library(const Env& env) {
  if (!env.cupti.empty()) return dlopen(env.cupti.c_str(), RTLD_NOW | RTLD_LOCAL);
  for (const char* name :
       {"libcupti.so.13", "libcupti.so.12", "/usr/local/cuda/extras/CUPTI/lib64/libcupti.so",
        "/usr/local/cuda/lib64/libcupti.so", "/usr/local/cuda/lib64/libcupti.so.13", "/usr/local/cuda/lib64/libcupti.so.12"})
    if (void* handle = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return handle;
  return nullptr;
}

std::string not_found(const Env& env) {
  if (!env.cupti.empty())
    return fmt::format("MIXLANE_CUPTI={} can't be loaded ({}); set it to the file libcupti.so", env.cupti.string(),
                       dlerror());
  return "kernel times need CUPTI, and there is no libcupti.so.13 or .12: it comes with the CUDA toolkit "
         "(extras/CUPTI/lib64) and with the Python package nvidia-cuda-cupti; set MIXLANE_CUPTI to the file libcupti.so";
}

// CUPTI counts on CLOCK_REALTIME; this is what leads from there to CLOCK_MONOTONIC.
int64_t clock_offset_ns(decltype(&cuptiGetTimestamp) timestamp) {
  uint64_t theirs = 0;
  const int64_t before = now_ns();
  if (timestamp(&theirs) != CUPTI_SUCCESS) return 0;
  return before + (now_ns() - before) / 2 - static_cast<int64_t>(theirs);
}

}  // namespace

const char* KernelProfiler::Library::load(void* handle) {
  const char* missing = nullptr;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(handle, name));
    if (!function && !missing) missing = name;
  };
  find(enable, "cuptiActivityEnable");
  find(disable, "cuptiActivityDisable");
  find(flush, "cuptiActivityFlushAll");
  find(next_record, "cuptiActivityGetNextRecord");
  find(num_dropped, "cuptiActivityGetNumDroppedRecords");
  find(register_callbacks, "cuptiActivityRegisterCallbacks");
  find(timestamp, "cuptiGetTimestamp");
  find(describe, "cuptiGetResultString");
  return missing;
}

void KernelProfiler::Library::check(CUptiResult result, const char* call) const {
  if (result == CUPTI_SUCCESS) return;
  const char* words = nullptr;
  if (describe(result, &words) != CUPTI_SUCCESS || !words) words = "unknown error";
  fail(ErrorCode::internal, "profiling kernels: {} failed: {} ({}); is another profiler attached to this process?", call,
       words, static_cast<int>(result));
}

KernelProfiler::KernelProfiler(const Env& env) : library_(std::make_unique<Library>()) {
  void* handle = open_library(env);  // never closed: CUPTI stays hooked into the driver
  if (!handle) {
    missing_ = not_found(env);
  } else if (const char* symbol = library_->load(handle)) {
    missing_ = fmt::format("this libcupti has no {}: it is older than CUDA 11; set MIXLANE_CUPTI to a newer one", symbol);
  }
}

KernelProfiler::~KernelProfiler() {
  Recording& of_process = recording();
  if (!of_process.running) return;
  of_process.running = false;
  static_cast<void>(library_->disable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL));
}

void KernelProfiler::start() {
  if (!missing_.empty()) fail(ErrorCode::missing_component, "{}", missing_);
  Recording& of_process = recording();
  if (of_process.running) fail(ErrorCode::invalid_argument, "kernels are being profiled already: call stop() first");
  if (!of_process.next_record) {
    of_process.next_record = library_->next_record;
    of_process.num_dropped = library_->num_dropped;
    library_->check(library_->register_callbacks(give_buffer, take_buffer), "cuptiActivityRegisterCallbacks");
  }
  {
    const std::lock_guard lock(of_process.mutex);
    of_process.profile = {};
    of_process.running = true;
  }
  const CUptiResult enabled = library_->enable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
  of_process.running = enabled == CUPTI_SUCCESS;
  library_->check(enabled, "cuptiActivityEnable");
}

KernelProfile KernelProfiler::stop() {
  Recording& of_process = recording();
  if (!of_process.running) fail(ErrorCode::invalid_argument, "no kernels are being profiled: call start() first");
  const CUptiResult flushed = library_->flush(0);
  const int64_t offset_ns = clock_offset_ns(library_->timestamp);
  const CUptiResult disabled = library_->disable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
  KernelProfile profile;
  {
    const std::lock_guard lock(of_process.mutex);
    of_process.running = false;
    profile = std::move(of_process.profile);
  }
  library_->check(flushed, "cuptiActivityFlushAll");
  library_->check(disabled, "cuptiActivityDisable");
  for (KernelSpan& span : profile.spans) {
    span.symbol = demangled(span.symbol);
    span.begin_ns += offset_ns;
    span.end_ns += offset_ns;
  }
  std::stable_sort(profile.spans.begin(), profile.spans.end(),
                   [](const KernelSpan& a, const KernelSpan& b) { return a.begin_ns < b.begin_ns; });
  return profile;
}

}  // namespace mixlane::bench
