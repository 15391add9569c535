#include "exchange/options.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "ops/dispatch/op.hpp"

namespace mixlane::bench {
namespace {

constexpr int kMaxMultiprocessors = 1024;

void add_ways(const std::vector<VariantInfo>& variants, std::vector<std::string>& ways) {
  for (const VariantInfo& variant : variants) {
    if (variant.device == DeviceType::cpu) continue;
    const std::string way(variant.id.substr(variant.id.find('.') + 1));
    if (std::find(ways.begin(), ways.end(), way) == ways.end()) ways.push_back(way);
  }
}

}  // namespace

std::string_view name(CombineRows rows) { return rows == CombineRows::pairs ? "pairs" : "reduced"; }

std::string_view name(DispatchInput input) { return input == DispatchInput::wire ? "wire" : "bf16"; }

std::string_view name(WireFormat wire) {
  switch (wire) {
    case WireFormat::bf16: return "bf16";
    case WireFormat::fp8_1x128: return "fp8_1x128";
    case WireFormat::fp8_row: return "fp8_row";
    case WireFormat::mxfp4: return "mxfp4";
  }
  return "";
}

std::vector<std::string> exchange_ways() {
  std::vector<std::string> ways{"auto"};
  add_ways(dispatch_variants(), ways);
  add_ways(combine_variants(), ways);
  ways.emplace_back(kNaiveWay);
  ways.emplace_back(kAllToAllWay);
  return ways;
}

bool has_exchange(const std::vector<std::string>& stages) {
  return std::any_of(stages.begin(), stages.end(),
                     [](const std::string& stage) { return stage == "dispatch" || stage == "combine"; });
}

ExchangeOptions parse_exchange_options(const ExchangeOptionTexts& texts) {
  ExchangeOptions options;
  const std::vector<std::string> known = exchange_ways();
  const auto is_known = [&](const std::string& way) { return std::find(known.begin(), known.end(), way) != known.end(); };
  for (const std::string& way : texts.dispatch)
    if (const size_t plus = way.find('+');
        !is_known(way.substr(0, plus)) || (plus != std::string::npos && !is_known(way.substr(plus + 1))))
      fail(ErrorCode::invalid_argument, "--dispatch '{}' is unknown; valid ones: {}", way, fmt::join(known, ", "));
  if (!texts.dispatch.empty()) options.ways = texts.dispatch;
  if (!texts.combine_rows.empty()) options.rows.clear();
  for (const std::string& text : texts.combine_rows) {
    if (text != name(CombineRows::reduced) && text != name(CombineRows::pairs))
      fail(ErrorCode::invalid_argument, "--combine-rows '{}' is unknown; valid ones: reduced, pairs", text);
    options.rows.push_back(text == name(CombineRows::pairs) ? CombineRows::pairs : CombineRows::reduced);
  }
  if (!texts.input.empty()) options.inputs.clear();
  for (const std::string& text : texts.input) {
    if (text != name(DispatchInput::bf16) && text != name(DispatchInput::wire))
      fail(ErrorCode::invalid_argument, "--input '{}' is unknown; valid ones: bf16, wire", text);
    options.inputs.push_back(text == name(DispatchInput::wire) ? DispatchInput::wire : DispatchInput::bf16);
  }
  if (!texts.multiprocessors.empty()) options.multiprocessors = texts.multiprocessors;
  for (const int count : options.multiprocessors)
    if (count < 0 || count > kMaxMultiprocessors)
      fail(ErrorCode::invalid_argument, "--multiprocessors is {}; it must be 0 (all) to {}", count, kMaxMultiprocessors);
  options.padded_to = texts.padded_to;
  options.overlap = texts.overlap;
  return options;
}

}  // namespace mixlane::bench
