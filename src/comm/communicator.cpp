#include <map>

#include "comm/ranks.hpp"
#include "core/error.hpp"
#include "mixlane/comm.hpp"

namespace mixlane {

std::string rank_list(std::span<const int> ranks) {
  std::string text = ranks.size() == 1 ? "rank" : "ranks";
  for (size_t i = 0; i < ranks.size(); ++i) text += fmt::format("{}{}", i == 0 ? " " : ", ", ranks[i]);
  return text;
}

void Communicator::require_equal(std::string_view what, std::string_view value) {
  const std::vector<std::string> values = all_gather(value);
  std::map<std::string, std::vector<int>> holders;
  for (int r = 0; r < num_ranks(); ++r) holders[values[r]].push_back(r);
  if (holders.size() == 1) return;
  std::string text;
  for (const auto& [held, ranks] : holders)
    text += fmt::format("{}{}: '{}'", text.empty() ? "" : "; ", rank_list(ranks), held);
  fail(ErrorCode::config_mismatch, "{} differs between ranks: {}; give all ranks the same", what, text);
}

}  // namespace mixlane
