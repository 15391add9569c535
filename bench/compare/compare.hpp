// `mixlane compare`: did it get slower? Two sets of results, row by row, by statistics that know the noise.
#pragma once

#include "results/cells.hpp"
#include "stats/stats.hpp"

namespace mixlane::bench {

struct CompareRow {
  CellKey cell;
  std::string stage;  // "*" where nothing of the cell can be compared
  double a_us = 0, b_us = 0;
  Comparison comparison;
  std::string reason;        // why it is not comparable
  bool newly_wrong = false;  // A's result passed the correctness check and B's does not
};

struct CompareResult {
  double threshold = 0;
  std::vector<CompareRow> rows;       // by cell, stages in the order of A
  std::vector<std::string> warnings;  // what may have moved all rows of a run: see run_warnings
  int count(Verdict verdict) const;
};

// On either side the newest measurement of each cell, and with it the earlier ones of the same commit under the same
// conditions: several runs tell how much runs differ. Rows are comparable if both sides have them with samples, passed the
// correctness check, and agree on device, processor, ranks, mode and cache.
CompareResult compare_results(const std::vector<ResultFile>& a, const std::vector<ResultFile>& b, double threshold);

// The samples of one run know the noise inside it, not what slowed or sped up the whole run. Names what the files tell of
// that: a machine that was busy, and peaks that differ by more than kPeakTolerance.
inline constexpr double kPeakTolerance = 0.10;
std::vector<std::string> run_warnings(const ResultFile& a, const ResultFile& b);
// The largest factor between the two runs' peaks, minus 1: a program's times can't be told apart more finely than the
// machine's own speed.
double machine_drift(const ResultFile& a, const ResultFile& b);

enum class FailOn { none, slow, ambiguous };  // ambiguous: or slow

// 1 on a regression: a SLOW row (with FailOn::ambiguous an AMBG one too), or a result that has become wrong. Else 3 if any
// row is not comparable, or there is none: 0 promises that everything was compared. FailOn::none: always 0.
int compare_exit_code(const CompareResult& result, FailOn fail_on);

std::string to_text(const CompareResult& result);
nlohmann::ordered_json to_json(const CompareResult& result);

}  // namespace mixlane::bench
