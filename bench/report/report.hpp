// `mixlane report`: every result of a folder on one page and in one table for programs.
#pragma once

#include <filesystem>

#include "results/cells.hpp"

namespace mixlane::bench {

using Cells = std::map<CellKey, std::vector<Measured>>;

struct Report {
  std::string markdown;
  std::string csv;         // a row per cell of a layer
  std::string stages_csv;  // a row per stage, variant and options that were measured alone; empty if none were
};

// Pure. `skipped`: one line per file that could not be read.
Report make_report(const std::vector<ResultFile>& files, const std::vector<std::string>& skipped);

// The parts of it.
std::string summary_csv(const Cells& cells);
std::string stages_csv(const Cells& cells);
std::vector<std::string> report_warnings(const Cells& cells, const std::vector<std::string>& skipped);

// Reads everything below `runs`, writes REPORT.md, summary.csv and, if there is something in it, stages.csv into `out`, and
// returns the path of the former. Files that can't be read get a warning on stderr and one in the report. Throws io_error if
// none can, or as write_text_file does.
std::filesystem::path write_report(const std::filesystem::path& runs, const std::filesystem::path& out);
// Into the folder `report` beside `runs`.
std::filesystem::path write_report(const std::filesystem::path& runs);

}  // namespace mixlane::bench
