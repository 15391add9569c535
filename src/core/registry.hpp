// The implementations of an op: a table per op, one line per variant, selected once per call by id or by what fits.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.hpp"

namespace mixlane {

// What users see of a variant: `mixlane bench --list-variants`, reports, traces.
struct VariantInfo {
  std::string_view id;       // "align.cpu": the same in file name, symbol, trace, JSON and command line
  std::string_view summary;  // one line: method and when it wins
  DeviceType device = DeviceType::cpu;
};

template <class Args>
struct Variant {
  VariantInfo info;
  // Why these (valid) arguments are not for it, with the values; empty if they are. nullptr: takes everything.
  std::string (*refuse)(const Context&, const Args&);
  void (*launch)(Context&, const Args&, Stream);
  // About how long it takes where nothing was measured (core/tuning.hpp); nullptr: the order of the table decides.
  double (*estimate_us)(const Args&, int num_multiprocessors) = nullptr;
};

template <class Args>
bool takes(const Variant<Args>& variant, const Context& context, const Args& args) {
  return !variant.refuse || variant.refuse(context, args).empty();
}

// The variant called `wanted`, or for "auto" the first of the table, best first, that runs on the context's device and
// takes the arguments. Throws invalid_argument listing the valid ids, or unsupported with every variant's reason.
template <class Args>
const Variant<Args>& select(std::span<const Variant<Args>> table, std::string_view wanted, const Context& context,
                            const Args& args) {
  const bool any = wanted == "auto";
  const auto is_asked_for = [&](const Variant<Args>& variant) {
    return variant.info.device == context.device().type && (any || wanted == variant.info.id);
  };
  for (const Variant<Args>& variant : table)
    if (is_asked_for(variant) && takes(variant, context, args)) return variant;
  // Only now are texts worth making: this is on the path of every call.
  std::string ids = "auto";
  std::string reasons;
  for (const Variant<Args>& variant : table) {
    if (variant.info.device == context.device().type) ids += fmt::format(", {}", variant.info.id);
    if (is_asked_for(variant))
      reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", variant.info.id, variant.refuse(context, args));
  }
  if (reasons.empty())
    fail(ErrorCode::invalid_argument, "unknown variant '{}' on {}; valid ones: {}", wanted, name(context.device().type),
         ids);
  fail(ErrorCode::unsupported, "no variant takes these arguments: {}", reasons);
}

// What a table holds, for lists.
template <class Args>
std::vector<VariantInfo> infos(std::span<const Variant<Args>> table) {
  std::vector<VariantInfo> all;
  for (const Variant<Args>& variant : table) all.push_back(variant.info);
  return all;
}

}  // namespace mixlane
