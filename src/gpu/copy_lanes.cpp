#include "gpu/copy_lanes.hpp"

#include "core/error.hpp"

namespace mixlane::gpu {

CopyLanes::CopyLanes(Device device, int num_lanes) {
  const DeviceGuard guard(device);
  forked_ = Event();
  for (int i = 0; i < num_lanes; ++i) {
    lanes_.emplace_back(device);
    joined_.emplace_back();
  }
}

void CopyLanes::fork(Stream stream) {
  forked_.record(stream);
  for (const OwnedStream& lane : lanes_) forked_.hold(lane.get());
  is_forked_ = true;
}

void CopyLanes::join(Stream stream) {
  if (!std::exchange(is_forked_, false)) return;
  for (size_t i = 0; i < lanes_.size(); ++i) {
    joined_[i].record(lanes_[i].get());
    joined_[i].hold(stream);
  }
}

std::string try_copy(void* to, const void* from, int64_t bytes, Stream stream) {
  try {
    copy(to, from, bytes, stream);
    synchronize(stream);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

}  // namespace mixlane::gpu
