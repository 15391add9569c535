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
};

// The variant called `wanted`, or for "auto" the first of the table, best first, that runs on the context's device and
// takes the arguments. Throws invalid_argument listing the valid ids, or unsupported with every variant's reason.
template <class Args>
const Variant<Args>& select(std::span<const Variant<Args>> table, std::string_view wanted, const Context& context,
                            const Args& args) {
  std::string ids = "auto";
  std::string reasons;
  for (const Variant<Args>& variant : table) {
    if (variant.info.device != context.device().type) continue;
    ids += fmt::format(", {}", variant.info.id);
    if (wanted != "auto" && wanted != variant.info.id) continue;
    const std::string reason = variant.refuse ? variant.refuse(context, args) : "";
    if (reason.empty()) return variant;
    reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", variant.info.id, reason);
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
