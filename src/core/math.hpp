// Whole-number arithmetic that every layer needs.
#pragma once

#include <cstdint>

namespace mixlane {

// Of a value that is not negative.
constexpr int64_t ceil_div(int64_t value, int64_t by) { return (value + by - 1) / by; }

}  // namespace mixlane
