#include "launch/rank_errors.hpp"

#include <cstdio>
#include <new>

#include "command.hpp"
#include "core/format.hpp"
#include "mixlane/core.hpp"

namespace mixlane::bench {

int print_error(const std::exception& error, std::string_view prefix) {
  const auto* known = dynamic_cast<const Error*>(&error);
  const bool no_memory = dynamic_cast<const std::bad_alloc*>(&error) != nullptr;
  // One write, so that the lines of several ranks don't mix.
  fmt::print(stderr, "{}", fmt::format("{}mixlane: {}\n", prefix, no_memory ? "out of memory" : error.what()));
  return known && known->code() == ErrorCode::invalid_argument ? kExitUsage : kExitFailed;
}

}  // namespace mixlane::bench
