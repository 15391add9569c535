// Throwing errors with values in them.
#pragma once

#include "core/format.hpp"
#include "mixlane/core.hpp"

namespace mixlane {

// throw Error(code, formatted message). The message says what is wrong, with the values, and what to do.
template <class... Values>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Values...> text, Values&&... values) {
  throw Error(code, fmt::format(text, std::forward<Values>(values)...));
}

// Keeps the first failure of a call and counts the others.
void record(Status& into, const Status& failure);

// What a stage does at its end: hands the status to the caller, or throws where the caller gave no place for it.
void deliver(const Status& status, Status* to);

}  // namespace mixlane
