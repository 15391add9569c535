#include "io/families.hpp"

#include <charconv>
#include <set>
#include <vector>

#include "core/error.hpp"

namespace mixlane {
namespace {

constexpr std::array<Family, 3> kFamilies{{
    {.name = "Mixtral",
     .layout = ExpertLayout::separate,
     .router = "block_sparse_moe.gate.weight",
     .router_bias = "",
     .correction_bias = "",
     .experts = "block_sparse_moe.experts.",
     .gate = "w1",
     .up = "w3",
     .down = "w2",
     .shared_experts = {},
     .shared_gate = ""},
    {.name = "Qwen3-MoE, DeepSeek-V3, Kimi-K2",
     .layout = ExpertLayout::separate,
     .router = "mlp.gate.weight",
     .router_bias = "",
     .correction_bias = "mlp.gate.e_score_correction_bias",
     .experts = "mlp.experts.",
     .gate = "gate_proj",
     .up = "up_proj",
     .down = "down_proj",
     .shared_experts = {"mlp.shared_experts.", "mlp.shared_expert."},
     .shared_gate = "mlp.shared_expert_gate.weight"},
    {.name = "gpt-oss",
     .layout = ExpertLayout::stacked_mxfp4,
     .router = "mlp.router.weight",
     .router_bias = "mlp.router.bias",
     .correction_bias = "",
     .experts = "mlp.experts.",
     .gate = "gate_up_proj",
     .up = "",
     .down = "down_proj",
     .shared_experts = {},
     .shared_gate = ""},
}};

// Models inside of a multimodal wrapper have longer ones.
constexpr std::array<std::string_view, 4> kPrefixes{"model.", "", "language_model.model.", "model.language_model."};

// "3-5, 8" of {3, 4, 5, 8}.
std::string ranges(const std::set<int>& numbers) {
  std::string text;
  for (auto first = numbers.begin(); first != numbers.end();) {
    auto last = first;
    auto next = std::next(first);
    while (next != numbers.end() && *next == *last + 1) last = next++;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", *first);
    if (last != first) text += fmt::format("-{}", *last);
    first = next;
  }
  return text;
}

// The layers whose router is there.
std::set<int> moe_layers(const Checkpoint& checkpoint) {
  std::set<int> layers;
  checkpoint.for_each_name([&](std::string_view name) {
    for (const Family& family : kFamilies) {
      if (!name.ends_with(family.router)) continue;
      for (const std::string_view prefix : kPrefixes) {
        const std::string begin = fmt::format("{}layers.", prefix);
        if (!name.starts_with(begin)) continue;
        int layer = 0;
        const auto [end, error] = std::from_chars(name.data() + begin.size(), name.data() + name.size(), layer);
        const std::string_view rest(end, static_cast<size_t>(name.data() + name.size() - end));
        if (error == std::errc() && rest == fmt::format(".{}", family.router)) layers.insert(layer);
      }
    }
  });
  return layers;
}

}  // namespace

CheckpointLayer find_layer(const Checkpoint& checkpoint, int layer) {
  for (const Family& family : kFamilies)
    for (const std::string_view prefix : kPrefixes) {
      const CheckpointLayer candidate{&family, fmt::format("{}layers.{}.", prefix, layer)};
      if (checkpoint.has(candidate.tensor(family.router))) return candidate;
    }
  const std::set<int> layers = moe_layers(checkpoint);
  if (!layers.empty())
    fail(ErrorCode::invalid_argument, "checkpoint {}: layer {} has no MoE weights; layers that have: {}",
         checkpoint.folder().string(), layer, ranges(layers));
  std::string known;
  for (const Family& family : kFamilies)
    known += fmt::format("{}{} (model.layers.<N>.{})", known.empty() ? "" : "; ", family.name, family.router);
  fail(ErrorCode::invalid_argument, "checkpoint {}: no layer with MoE weights of a known family: {}",
       checkpoint.folder().string(), known);
}

}  // namespace mixlane
