// The console's table of dispatch and combine.
#pragma once

#include <string>
#include <vector>

#include "results/record.hpp"

namespace mixlane::bench {

// A row per stage, options and variant, a column per mode and cache; rates and ratios are of the last of these. Empty if the
// records have no such stages.
std::string exchange_table(const ResultFile& file, const std::vector<Record>& records);
bool is_exchange_row(const StageRecord& stage);

}  // namespace mixlane::bench
