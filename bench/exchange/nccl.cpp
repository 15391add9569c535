#include "exchange/nccl.hpp"

#include <dlfcn.h>

#include "core/error.hpp"
#include "gpu/runtime.hpp"

namespace mixlane::bench {
namespace {

constexpr const char* kLibrary = "libnccl.so.2";
constexpr int kSum = 0;

// The library's functions by their names; it stays loaded.
struct Library {
  std::string missing;
  const char* (*error_string)(int) = nullptr;
  int (*get_version)(int*) = nullptr;
  int (*get_unique_id)(NcclId*) = nullptr;
  int (*init_rank)(void**, int, NcclId, int) = nullptr;
  int (*destroy)(void*) = nullptr;
  int (*group_start)() = nullptr;
  int (*group_end)() = nullptr;
  int (*all_gather)(const void*, void*, size_t, int, void*, void*) = nullptr;
  int (*reduce_scatter)(const void*, void*, size_t, int, int, void*, void*) = nullptr;
  int (*send)(const void*, size_t, int, int, void*, void*) = nullptr;
  int (*receive)(void*, size_t, int, int, void*, void*) = nullptr;

  Library() {
    void* const handle = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
      const char* const why = dlerror();
      missing = fmt::format("{} can't be loaded ({}); install NCCL or name its folder in LD_LIBRARY_PATH", kLibrary,
                            why ? why : "no reason given");
      return;
    }
    load(handle, "ncclGetErrorString", error_string);
    load(handle, "ncclGetVersion", get_version);
    load(handle, "ncclGetUniqueId", get_unique_id);
    load(handle, "ncclCommInitRank", init_rank);
    load(handle, "ncclCommDestroy", destroy);
    load(handle, "ncclGroupStart", group_start);
    load(handle, "ncclGroupEnd", group_end);
    load(handle, "ncclAllGather", all_gather);
    load(handle, "ncclReduceScatter", reduce_scatter);
    load(handle, "ncclSend", send);
    load(handle, "ncclRecv", receive);
  }

  template <class Function>
  void load(void* handle, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(handle, name));
    if (!function && missing.empty()) missing = fmt::format("{} has no {}; version 2.7 or later is needed", kLibrary, name);
  }
};

const Library& library() {
  static const Library loaded;
  return loaded;
}

void check(int result, const char* call) {
  if (result != 0) fail(ErrorCode::internal, "{} failed: {} ({})", call, library().error_string(result), result);
}

}  // namespace

const std::string& Nccl::missing() { return library().missing; }

std::string Nccl::version() {
  int number = 0;
  check(library().get_version(&number), "ncclGetVersion");
  return fmt::format("{}.{}.{}", number / 10000, number / 100 % 100, number % 100);
}

NcclId Nccl::unique_id() {
  NcclId id;
  check(library().get_unique_id(&id), "ncclGetUniqueId");
  return id;
}

Nccl::Nccl(int num_ranks, const NcclId& id, int rank, Device device) : device_(device) {
  const gpu::DeviceGuard guard(device);
  check(library().init_rank(&handle_, num_ranks, id, rank), "ncclCommInitRank");
}

Nccl::~Nccl() { static_cast<void>(library().destroy(handle_)); }

void Nccl::begin() const { check(library().group_start(), "ncclGroupStart"); }
void Nccl::end() const { check(library().group_end(), "ncclGroupEnd"); }

void Nccl::all_gather(const void* from, void* to, int64_t count, NcclType type, Stream stream) const {
  check(library().all_gather(from, to, static_cast<size_t>(count), static_cast<int>(type), handle_, stream.handle),
        "ncclAllGather");
}

void Nccl::reduce_scatter(const void* from, void* to, int64_t count, NcclType type, Stream stream) const {
  check(library().reduce_scatter(from, to, static_cast<size_t>(count), static_cast<int>(type), kSum, handle_, stream.handle),
        "ncclReduceScatter");
}

void Nccl::send(const void* from, int64_t count, NcclType type, int to, Stream stream) const {
  check(library().send(from, static_cast<size_t>(count), static_cast<int>(type), to, handle_, stream.handle), "ncclSend");
}

void Nccl::receive(void* to, int64_t count, NcclType type, int from, Stream stream) const {
  check(library().receive(to, static_cast<size_t>(count), static_cast<int>(type), from, handle_, stream.handle), "ncclRecv");
}

}  // namespace mixlane::bench
