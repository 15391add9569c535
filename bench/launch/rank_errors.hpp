// How an error reaches the user: one line on stderr and an exit code.
#pragma once

#include <exception>
#include <string_view>

namespace mixlane::bench {

// Prints "<prefix>mixlane: <message>" and returns the exit code that goes with the error: kExitUsage for an
// invalid_argument, else kExitFailed.
int print_error(const std::exception& error, std::string_view prefix);

}  // namespace mixlane::bench
