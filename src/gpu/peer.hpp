// The links between GPUs.
#pragma once

#include <string>

#include "mixlane/core.hpp"

namespace mixlane::gpu {

// Lets kernels of `from` read and write memory of `to`. "" or why that is impossible.
std::string connect_peer(Device from, Device to);

}  // namespace mixlane::gpu
