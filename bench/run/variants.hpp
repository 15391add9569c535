// The implementations of every stage, for the command line.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/registry.hpp"
#include "mixlane/layer.hpp"

namespace mixlane::bench {

struct StageVariants {
  std::string stage;
  std::vector<VariantInfo> variants;
};

// The stages of a layer whose variant can be chosen, in the order of the data flow.
std::vector<StageVariants> all_variants();
// Those that can be measured alone.
std::vector<StageVariants> lone_stage_variants();

// "align=align.cpu" and the like -> stage -> id. Throws invalid_argument listing the valid stages or ids.
std::map<std::string, std::string> parse_variants(const std::vector<std::string>& settings);

// The id that runs for `stage` under this configuration: the chosen one, or what "auto" takes.
std::string resolved_variant(const Context& context, const MoeLayerConfig& config, const MoeLayerWeights& weights,
                             Stage stage);

// What --list-variants prints.
std::string variants_text();

}  // namespace mixlane::bench
