// Judging what doctor found: what is fine, what disturbs measurements, what is missing, and what to do about it.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "results/record.hpp"

namespace mixlane::bench {

enum class Level { ok, note, warn, fail };
std::string_view name(Level level);  // ok note WARN FAIL

struct Finding {
  std::string subject;
  std::string text;
  Level level = Level::ok;
  std::string advice;  // what to do, or what it means
};

// One finding per line of the report. Pure: everything comes from the arguments.
std::vector<Finding> examine(const std::map<std::string, std::string>& environment, const Peaks& peaks);

// The lines as doctor prints them.
std::string to_text(const std::vector<Finding>& findings);

}  // namespace mixlane::bench
