// When something was measured.
#pragma once

#include <string>

namespace mixlane::bench {

// Local time, "2026-09-30T10-12-33": sorts by age and is a file name.
std::string current_stamp();

}  // namespace mixlane::bench
