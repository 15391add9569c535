// What a context has to say to its user that is no error.
#pragma once

#include <string>
#include <vector>

#include "core/stage_states.hpp"
#include "mixlane/core.hpp"

namespace mixlane {

struct Notices {
  std::vector<std::string> lines;
};

inline Notices& notices_of(const Context& context) {
  return context.states().get<Notices>([] { return new Notices; });
}

}  // namespace mixlane
