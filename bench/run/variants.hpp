// The implementations of every stage, for the command line.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/registry.hpp"

namespace mixlane::bench {

struct StageVariants {
  std::string stage;
  std::vector<VariantInfo> variants;
};

// The stages whose variant can be chosen, in the order of the data flow.
std::vector<StageVariants> all_variants();

// "align=align.cpu" and the like -> stage -> id. Throws invalid_argument listing the valid stages or ids.
std::map<std::string, std::string> parse_variants(const std::vector<std::string>& settings);

// What --list-variants prints.
std::string variants_text();

}  // namespace mixlane::bench
