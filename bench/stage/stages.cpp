#include <array>

#include "stage/stage.hpp"

namespace mixlane::bench {

std::span<const StageKind> stage_kinds() {
  static constexpr std::array<StageKind, 6> kKinds{{
      {"routing", make_routing_stages},
      {"quant", make_quant_stages},
      {"dequant", make_dequant_stages},
      {"align", make_align_stages},
      {"chain", make_chain_stages},
      {"experts", make_experts_stages},
  }};
  return kKinds;
}

Correctness exact_check(int tokens, int64_t num_different, int64_t num_compared, std::string reference) {
  Correctness check;
  check.passed = num_different == 0;
  check.checked_tokens = tokens;
  check.rel_error = static_cast<double>(num_different) / static_cast<double>(std::max<int64_t>(num_compared, 1));
  check.reference = std::move(reference);
  return check;
}

}  // namespace mixlane::bench
