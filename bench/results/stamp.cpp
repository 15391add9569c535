#include "results/stamp.hpp"

#include <ctime>

namespace mixlane::bench {

std::string current_stamp() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  ::localtime_r(&now, &local);
  char text[32];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H-%M-%S", &local)};
}

}  // namespace mixlane::bench
