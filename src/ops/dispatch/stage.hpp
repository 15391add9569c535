// The two halves of an exchange.
#pragma once

#include <cstdint>
#include <string_view>

namespace mixlane {

enum class ExchangeStage : uint8_t { dispatch, combine };

inline std::string_view name(ExchangeStage stage) { return stage == ExchangeStage::dispatch ? "dispatch" : "combine"; }

}  // namespace mixlane
