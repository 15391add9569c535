// Streams beside the caller's, for copies that no kernel makes: the copy engines work on them while the caller's stream goes
// on. Forks and joins may be captured into graphs.
#pragma once

#include <vector>

#include "gpu/runtime.hpp"

namespace mixlane::gpu {

class CopyLanes {
 public:
  CopyLanes(Device device, int num_lanes);

  int count() const { return static_cast<int>(lanes_.size()); }
  Stream operator[](int lane) const { return lanes_[static_cast<size_t>(lane)].get(); }
  // What comes on the lanes waits for what is on `stream` by now.
  void fork(Stream stream);
  // What comes on `stream` waits for what is on the lanes by now; nothing if they have not been forked since the last join.
  void join(Stream stream);

 private:
  std::vector<OwnedStream> lanes_;
  Event forked_;
  std::vector<Event> joined_;
  bool is_forked_ = false;
};

// "" or why bytes can't be copied from `from` to `to` without a kernel; tries it with `bytes` of them and waits.
std::string try_copy(void* to, const void* from, int64_t bytes, Stream stream);

}  // namespace mixlane::gpu
