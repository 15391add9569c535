// The sections of REPORT.md.
#pragma once

#include "report/report.hpp"

namespace mixlane::bench {

// How every number was measured; what speed of light means.
std::string rules_section();
// The environment and the peaks of the newest run, and where older runs differ.
std::string machine_section(const Cells& cells);

// Of the cells of one model and quantisation, newest run each:
std::string layer_table(const Cells& cells);
std::string stage_table(const Cells& cells);
std::string skew_table(const Cells& cells);

// Of cells of stages alone: a table per stage, options, workload and conditions, a row per token count, the variants beside
// each other.
std::string stages_alone(const Cells& cells);

// Cells that were measured more than once; empty if none was.
std::string history_section(const Cells& cells);

}  // namespace mixlane::bench
