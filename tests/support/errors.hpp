// Expecting an Error by code and by what its message must name.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "mixlane/core.hpp"

namespace mixlane::test {

inline void expect_error(ErrorCode code, const std::vector<std::string>& mentions, const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    for (const std::string& text : mentions)
      EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << "'" << text << "' missing in: " << error.what();
    return;
  }
  ADD_FAILURE() << "no error; expected " << name(code);
}

}  // namespace mixlane::test
