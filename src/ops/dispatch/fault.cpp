#include "ops/dispatch/fault.hpp"

#include <charconv>
#include <chrono>
#include <csignal>
#include <thread>

#include "core/error.hpp"

namespace mixlane {
namespace {

// Takes the text up to the next ':' off `rest`.
std::string_view next_field(std::string_view& rest) {
  const std::string_view field = rest.substr(0, rest.find(':'));
  rest.remove_prefix(std::min(rest.size(), field.size() + 1));
  return field;
}

bool parse(std::string_view text, int64_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && value >= 0 && value <= 1'000'000'000;
}

}  // namespace

Fault parse_fault(std::string_view text) {
  Fault fault;
  if (text.empty()) return fault;
  std::string_view rest = text;
  if (text.substr(0, 7) == "jitter_" && parse(text.substr(7), fault.jitter_us)) return fault;
  const std::string_view kind = next_field(rest), stage = next_field(rest), rank = next_field(rest);
  int64_t rank_value = 0;
  const bool stall = kind.substr(0, 6) == "stall_";
  fault.flips = kind == "flip";
  const bool good = (kind == "kill" || fault.flips || (stall && parse(kind.substr(6), fault.stall_ms))) &&
                    (stage == "dispatch" || stage == "combine") && parse(rank, rank_value) && parse(rest, fault.epoch);
  if (!good)
    fail(ErrorCode::invalid_argument,
         "MIXLANE_FAULT='{}': it must be kill:<stage>:<rank>:<epoch>, stall_<ms>:<stage>:<rank>:<epoch>, "
         "flip:<stage>:<rank>:<epoch> (stage = dispatch or combine) or jitter_<us>",
         text);
  fault.given = true;
  fault.stage = stage == "dispatch" ? ExchangeStage::dispatch : ExchangeStage::combine;
  fault.rank = static_cast<int>(rank_value);
  return fault;
}

void Fault::strike() const {
  if (flips) return;
  if (stall_ms < 0) raise(SIGKILL);
  std::this_thread::sleep_for(std::chrono::milliseconds(stall_ms));
}

}  // namespace mixlane
