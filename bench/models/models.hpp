// `mixlane models`: the shape catalogue.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "mixlane/model.hpp"

namespace mixlane::bench {

// One line per model, by name; "*" marks a shape with values that nobody has checked, "?" a value that nobody knows.
std::string models_table(const std::vector<Model>& models);
nlohmann::ordered_json models_json(const std::vector<Model>& models);

}  // namespace mixlane::bench
