// What can be chosen of stages that are measured alone; each list makes one case per value.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/registry.hpp"
#include "mixlane/quant.hpp"

namespace mixlane::bench {

struct StageVariants;

// What a call of experts writes: a row per pair, or the weighted sum of each token's.
enum class ExpertsOutput { pairs, tokens };

struct StageOptions {
  std::vector<int> align_blocks{128};
  std::vector<DType> id_types{DType::i32};  // of the ids that routing writes and align reads
  std::vector<DType> logits_types{DType::f32};
  std::vector<ScaleGroup> quant_groups;         // empty: what the quantisation says, see quant_groups_of
  std::vector<DType> quant_types{DType::bf16};  // of the values that quant reads and dequant writes
  std::vector<bool> quant_scales_by_column{false};
  std::vector<ExpertsOutput> experts_outputs{ExpertsOutput::pairs};
  std::vector<bool> batch_invariant{false};  // of experts
};

// The groups of activations of an experts' arithmetic; 1x128 where it takes bf16.
ScaleGroup quant_group_of(QuantFormat format);
// "1x128", "row", "128x128" or "1x32".
std::string_view short_name(ScaleGroup group);

// As typed, empty for the default -> options. Throws invalid_argument naming the option, the value and the valid ones.
struct StageOptionTexts {
  std::vector<int> align_block{};
  std::vector<std::string> id_type{}, logits_type{}, quant_group{}, quant_type{}, quant_scales{}, experts_output{},
      batch_invariant{};
  bool any() const {
    return !align_block.empty() || !id_type.empty() || !logits_type.empty() || !quant_group.empty() || !quant_type.empty() ||
           !quant_scales.empty() || !experts_output.empty() || !batch_invariant.empty();
  }
};
StageOptions parse_stage_options(const StageOptionTexts& texts);

// "align=all", "align=align.cluster,align.oneshot" and the like -> stage -> ids in that order; "all" becomes the ids of
// `device`, "auto" stays. `valid`: the stages and their variants. Throws invalid_argument listing what is valid.
std::map<std::string, std::vector<std::string>> parse_variant_lists(const std::vector<std::string>& settings,
                                                                    const std::vector<StageVariants>& valid,
                                                                    DeviceType device);

}  // namespace mixlane::bench
