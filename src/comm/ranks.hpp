// Naming ranks in messages.
#pragma once

#include <span>
#include <string>

namespace mixlane {

// "rank 3" or "ranks 3, 5".
std::string rank_list(std::span<const int> ranks);

}  // namespace mixlane
