// The console's table of stages alone.
#pragma once

#include <string>
#include <vector>

#include "results/record.hpp"

namespace mixlane::bench {

// What the columns of all tables of a run mean.
std::string stages_alone_legend(const ResultFile& file);
// One cell: a row per stage, options and variant, a column per mode and cache. `records`: those of the cell.
std::string stages_alone_table(const ResultFile& file, const std::vector<Record>& records);

}  // namespace mixlane::bench
