#include "stage/options.hpp"

#include <algorithm>
#include <array>

#include "core/error.hpp"
#include "ops/quant/formats.hpp"
#include "run/variants.hpp"

namespace mixlane::bench {
namespace {

constexpr std::array<std::pair<ScaleGroup, std::string_view>, 4> kGroups{{{ScaleGroup::group_1x128, "1x128"},
                                                                          {ScaleGroup::row, "row"},
                                                                          {ScaleGroup::block_128x128, "128x128"},
                                                                          {ScaleGroup::group_1x32, "1x32"}}};
constexpr int kMaxBlock = 1024;

std::vector<DType> parse_types(std::string_view option, const std::vector<std::string>& texts,
                               std::initializer_list<DType> valid) {
  std::vector<DType> types;
  for (const std::string& text : texts) {
    const auto known = std::find_if(valid.begin(), valid.end(), [&](DType type) { return name(type) == text; });
    if (known == valid.end()) {
      std::string names;
      for (const DType type : valid) names += fmt::format("{}{}", names.empty() ? "" : ", ", name(type));
      fail(ErrorCode::invalid_argument, "{} '{}' is unknown; valid ones: {}", option, text, names);
    }
    types.push_back(*known);
  }
  return types;
}

ScaleGroup parse_group(const std::string& text) {
  for (const auto& [group, known] : kGroups)
    if (known == text) return group;
  fail(ErrorCode::invalid_argument, "--quant-group '{}' is unknown; valid ones: 1x128, row, 128x128, 1x32", text);
}

// One of two names.
bool parse_either(std::string_view option, const std::string& text, std::string_view no, std::string_view yes) {
  if (text != no && text != yes)
    fail(ErrorCode::invalid_argument, "{} '{}' is unknown; valid ones: {}, {}", option, text, no, yes);
  return text == yes;
}

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(at, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

std::vector<std::string> ids_of(const StageVariants& stage, DeviceType device) {
  std::vector<std::string> ids;
  for (const VariantInfo& variant : stage.variants)
    if (variant.device == device) ids.emplace_back(variant.id);
  return ids;
}

void append(std::vector<std::string>& to, const std::string& id) {
  if (std::find(to.begin(), to.end(), id) == to.end()) to.push_back(id);
}

}  // namespace

ScaleGroup quant_group_of(QuantFormat format) {
  return format == QuantFormat::mxfp4 ? ScaleGroup::group_1x32 : activation_group(format);
}

std::string_view short_name(ScaleGroup group) {
  for (const auto& [known, text] : kGroups)
    if (known == group) return text;
  return "";
}

StageOptions parse_stage_options(const StageOptionTexts& texts) {
  StageOptions options;
  if (!texts.align_block.empty()) options.align_blocks = texts.align_block;
  for (const int block : options.align_blocks)
    if (block < 1 || block > kMaxBlock)
      fail(ErrorCode::invalid_argument, "--align-block is {}; it must be 1..{}", block, kMaxBlock);
  if (!texts.id_type.empty()) options.id_types = parse_types("--id-type", texts.id_type, {DType::i32, DType::i64});
  if (!texts.logits_type.empty())
    options.logits_types = parse_types("--logits-type", texts.logits_type, {DType::f32, DType::bf16, DType::f16});
  for (const std::string& text : texts.quant_group) options.quant_groups.push_back(parse_group(text));
  if (!texts.quant_type.empty())
    options.quant_types = parse_types("--quant-type", texts.quant_type, {DType::bf16, DType::f16, DType::f32});
  if (!texts.quant_scales.empty()) options.quant_scales_by_column.clear();
  for (const std::string& text : texts.quant_scales)
    options.quant_scales_by_column.push_back(parse_either("--quant-scales", text, "rows", "columns"));
  if (!texts.experts_output.empty()) options.experts_outputs.clear();
  for (const std::string& text : texts.experts_output)
    options.experts_outputs.push_back(parse_either("--experts-output", text, "pairs", "tokens") ? ExpertsOutput::tokens
                                                                                                : ExpertsOutput::pairs);
  if (!texts.batch_invariant.empty()) options.batch_invariant.clear();
  for (const std::string& text : texts.batch_invariant)
    options.batch_invariant.push_back(parse_either("--batch-invariant", text, "off", "on"));
  return options;
}

std::map<std::string, std::vector<std::string>> parse_variant_lists(const std::vector<std::string>& settings,
                                                                    const std::vector<StageVariants>& valid,
                                                                    DeviceType device) {
  std::map<std::string, std::vector<std::string>> chosen;
  for (const std::string& setting : settings) {
    const size_t equals = setting.find('=');
    const std::string stage = setting.substr(0, equals);
    const auto known = std::find_if(valid.begin(), valid.end(), [&](const auto& each) { return each.stage == stage; });
    if (equals == std::string::npos || known == valid.end()) {
      std::string stages;
      for (const StageVariants& each : valid) stages += (stages.empty() ? "" : ", ") + each.stage;
      fail(ErrorCode::invalid_argument, "--variant '{}': write stage=id,id or stage=all with a stage of {}", setting,
           stages);
    }
    const std::vector<std::string> ids = ids_of(*known, device);
    for (const std::string& id : split(setting.substr(equals + 1), ',')) {
      if (id == "all") {
        for (const std::string& each : ids) append(chosen[stage], each);
      } else if (id == "auto" || std::find(ids.begin(), ids.end(), id) != ids.end()) {
        append(chosen[stage], id);
      } else {
        fail(ErrorCode::invalid_argument, "--variant: {} has no '{}' on {}; valid ones: auto, all, {}", stage, id,
             name(device), fmt::join(ids, ", "));
      }
    }
  }
  return chosen;
}

}  // namespace mixlane::bench
