// The stage table of a cell.
#pragma once

#include <string>

#include "results/record.hpp"

namespace mixlane::bench {

// What the columns of all tables of a run mean.
std::string table_legend(const ResultFile& file);
std::string stage_table(const ResultFile& file, const Record& record);

}  // namespace mixlane::bench
