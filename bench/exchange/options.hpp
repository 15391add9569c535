// What can be chosen of dispatch and combine on GPUs.
#pragma once

#include <string>
#include <vector>

#include "mixlane/dispatch.hpp"

namespace mixlane::bench {

// What combine starts from.
enum class CombineRows : uint8_t {
  reduced,  // a row per received row: the local experts' sum, made before
  pairs,    // a row per (received row, local expert), weighted and summed on the way
};
std::string_view name(CombineRows rows);

// What dispatch gets where the wire is not bf16.
enum class DispatchInput : uint8_t {
  bf16,  // rows that it quantises on the way
  wire,  // rows and scales as they go over the wire
};
std::string_view name(DispatchInput input);
std::string_view name(WireFormat wire);

// How a dispatch and its combine go together; a list makes one run per value.
struct ExchangeOptions {
  std::vector<std::string> ways{"auto"};  // of exchange_ways(), or two of the library's: "copy_engine+latency"
  std::vector<CombineRows> rows{CombineRows::reduced};
  std::vector<DispatchInput> inputs{DispatchInput::bf16};
  std::vector<int> multiprocessors{0};  // DispatcherConfig::num_multiprocessors
  int padded_to = 0;                    // rows of dispatch's tensors, with the number of tokens on the device; 0: just those
  bool overlap = false;                 // beside matrix products as well
};

// As typed, empty for the default -> options. Throws invalid_argument naming the option, the value and the valid ones.
struct ExchangeOptionTexts {
  std::vector<std::string> dispatch, combine_rows, input;
  std::vector<int> multiprocessors;
  int padded_to = 0;
  bool overlap = false;
  bool any() const {
    return !dispatch.empty() || !combine_rows.empty() || !input.empty() || !multiprocessors.empty() || padded_to != 0 ||
           overlap;
  }
};
ExchangeOptions parse_exchange_options(const ExchangeOptionTexts& texts);

// "auto", the library's variants without the stage in front ("latency"), and the baselines "naive" and "nccl_a2a".
std::vector<std::string> exchange_ways();
inline constexpr std::string_view kNaiveWay = "naive", kAllToAllWay = "nccl_a2a";

// Whether "dispatch" or "combine" is among the stages.
bool has_exchange(const std::vector<std::string>& stages);

}  // namespace mixlane::bench
