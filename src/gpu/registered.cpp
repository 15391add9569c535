#include "gpu/registered.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "gpu/api.hpp"

namespace mixlane::gpu {
namespace {

constexpr int64_t kLargePage = 2 << 20;

}  // namespace

void RegisteredBuffer::Free::operator()(std::byte* memory) const noexcept { std::free(memory); }

void RegisteredBuffer::Unregister::operator()(std::byte* memory) const noexcept {
  static_cast<void>(MIXLANE_GPU_API(HostUnregister)(memory));
}

RegisteredBuffer::RegisteredBuffer(int64_t bytes, int num_threads) {
  const int64_t pages = std::max<int64_t>((bytes + kLargePage - 1) / kLargePage, 1);
  const auto size = static_cast<size_t>(pages * kLargePage);
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kLargePage, size)));
  if (!memory_) fail(ErrorCode::out_of_memory, "no {} bytes of host memory for pinned blocks", size);
  static_cast<void>(madvise(memory_.get(), size, MADV_HUGEPAGE));  // a hint; small pages do as well
  parallel_ranges(num_threads, pages, 1, [&](int64_t begin, int64_t end) {
    std::memset(memory_.get() + begin * kLargePage, 0, static_cast<size_t>((end - begin) * kLargePage));
  });
  check(MIXLANE_GPU_API(HostRegister)(memory_.get(), size, MIXLANE_GPU_API(HostRegisterDefault)), "HostRegister",
        fmt::format("pinning {} bytes of host memory", size));
  registered_.reset(memory_.get());
}

}  // namespace mixlane::gpu
