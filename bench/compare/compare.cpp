#include "compare/compare.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "command.hpp"

namespace mixlane::bench {
namespace {

std::string processor(const ResultFile& file) {
  const auto found = file.environment.find("cpu");
  return found == file.environment.end() ? "unknown" : found->second;
}

std::string differs(const char* what, const auto& a, const auto& b) {
  return a == b ? "" : fmt::format("{} differs ({} and {})", what, a, b);
}

std::string failed_check(const char* side, const Correctness& c) {
  return c.passed
             ? ""
             : fmt::format("{} failed its correctness check (error {:.2e}, allowed {:.2e})", side, c.rel_error, c.tolerance);
}

// Why two measurements of one cell can't be compared at all; empty if they can.
std::string obstacle(const Measured& a, const Measured& b) {
  for (std::string reason :
       {differs("device", a.file->device, b.file->device), differs("processor", processor(*a.file), processor(*b.file)),
        differs("ranks", a.file->ranks, b.file->ranks), differs("mode", a.file->mode, b.file->mode),
        differs("cache", a.file->cache, b.file->cache), failed_check("A", a.record->correctness),
        failed_check("B", b.record->correctness)})
    if (!reason.empty()) return reason;
  return "";
}

CompareRow not_comparable(const CellKey& cell, const std::string& stage, const std::string& reason) {
  CompareRow row;
  row.cell = cell;
  row.stage = stage;
  row.reason = reason;
  row.comparison.verdict = Verdict::not_comparable;
  return row;
}

CompareRow compare_stage(const CellKey& cell, const StageRecord& a, const StageRecord& b, double threshold) {
  if (a.samples_us.empty()) return not_comparable(cell, a.stage, "A stored no samples");
  if (b.samples_us.empty()) return not_comparable(cell, a.stage, "B stored no samples");
  CompareRow row;
  row.cell = cell;
  row.stage = a.stage;
  row.a_us = quantile(a.samples_us, 0.5);
  row.b_us = quantile(b.samples_us, 0.5);
  row.comparison = compare_samples(a.samples_us, b.samples_us, threshold);
  if (row.comparison.verdict == Verdict::not_comparable) row.reason = "a median is 0";
  return row;
}

void compare_cell(const CellKey& cell, const Measured& a, const Measured& b, CompareResult& result) {
  if (const std::string reason = obstacle(a, b); !reason.empty()) {
    CompareRow row = not_comparable(cell, "*", reason);
    row.newly_wrong = a.record->correctness.passed && !b.record->correctness.passed;
    result.rows.push_back(row);
    return;
  }
  for (const std::string& warning : run_warnings(*a.file, *b.file))
    if (std::find(result.warnings.begin(), result.warnings.end(), warning) == result.warnings.end())
      result.warnings.push_back(warning);
  for (const StageRecord& stage : a.record->stages) {
    const StageRecord* other = find_stage(*b.record, stage.stage);
    result.rows.push_back(other ? compare_stage(cell, stage, *other, result.threshold)
                                : not_comparable(cell, stage.stage, "only in A"));
  }
  for (const StageRecord& stage : b.record->stages)
    if (!find_stage(*a.record, stage.stage)) result.rows.push_back(not_comparable(cell, stage.stage, "only in B"));
}

}  // namespace

int CompareResult::count(Verdict verdict) const {
  return static_cast<int>(
      std::count_if(rows.begin(), rows.end(), [&](const CompareRow& row) { return row.comparison.verdict == verdict; }));
}

CompareResult compare_results(const std::vector<ResultFile>& a, const std::vector<ResultFile>& b, double threshold) {
  const auto cells_a = group_cells(a), cells_b = group_cells(b);
  std::set<CellKey> keys;
  for (const auto& [key, runs] : cells_a) keys.insert(key);
  for (const auto& [key, runs] : cells_b) keys.insert(key);
  CompareResult result;
  result.threshold = threshold;
  for (const CellKey& key : keys) {
    const auto in_a = cells_a.find(key), in_b = cells_b.find(key);
    if (in_b == cells_b.end()) {
      result.rows.push_back(not_comparable(key, "*", "only in A"));
    } else if (in_a == cells_a.end()) {
      result.rows.push_back(not_comparable(key, "*", "only in B"));
    } else {
      compare_cell(key, in_a->second.front(), in_b->second.front(), result);
    }
  }
  return result;
}

int compare_exit_code(const CompareResult& result, FailOn fail_on) {
  if (fail_on == FailOn::none) return kExitOk;
  const bool wrong =
      std::any_of(result.rows.begin(), result.rows.end(), [](const CompareRow& row) { return row.newly_wrong; });
  if (wrong || result.count(Verdict::slow) > 0) return kExitFailed;
  if (fail_on == FailOn::ambiguous && result.count(Verdict::ambiguous) > 0) return kExitFailed;
  return result.rows.empty() || result.count(Verdict::not_comparable) > 0 ? kExitNotComparable : kExitOk;
}

}  // namespace mixlane::bench
