#include "compare/compare.hpp"

#include <algorithm>
#include <set>
#include <tuple>

#include "command.hpp"
#include "core/format.hpp"

namespace mixlane::bench {
namespace {

std::string processor(const ResultFile& file) {
  const auto found = file.environment.find(file.device == "cpu" ? "cpu" : "gpu");
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
        differs("ranks", a.file->ranks, b.file->ranks), differs("mode", a.record->mode, b.record->mode),
        differs("cache", a.record->cache, b.record->cache), failed_check("A", a.record->correctness),
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

std::string commit(const ResultFile& file) {
  const auto found = file.environment.find("commit");
  return found == file.environment.end() ? "unknown" : found->second;
}

// The newest measurement of a cell and the earlier ones that repeat it.
std::vector<Measured> repeats_of_newest(const std::vector<Measured>& newest_first) {
  std::vector<Measured> repeats;
  for (const Measured& each : newest_first)
    if (commit(*each.file) == commit(*newest_first[0].file) && obstacle(newest_first[0], each).empty())
      repeats.push_back(each);
  return repeats;
}

// A stage's samples in each run that has them; it is of the newest.
Runs runs_of(const std::vector<Measured>& repeats, const StageRecord& stage) {
  Runs runs;
  for (const Measured& each : repeats)
    if (const StageRecord* record = find_counterpart(*repeats[0].record, stage, *each.record);
        record && !record->samples_us.empty())
      runs.emplace_back(record->samples_us);
  return runs;
}

double median_of(const Runs& runs) {
  std::vector<double> medians;
  for (const auto& samples : runs) medians.push_back(quantile(samples, 0.5));
  return quantile(medians, 0.5);
}

CompareRow compare_stage(const CellKey& cell, const std::string& stage, const Runs& a, const Runs& b, double drift,
                         double threshold) {
  if (a.empty()) return not_comparable(cell, stage, "A stored no samples");
  if (b.empty()) return not_comparable(cell, stage, "B stored no samples");
  CompareRow row;
  row.cell = cell;
  row.stage = stage;
  row.a_us = median_of(a);
  row.b_us = median_of(b);
  row.comparison = compare_runs(a, b, drift, threshold);
  if (row.comparison.verdict == Verdict::not_comparable) row.reason = "a median is 0";
  return row;
}

void compare_cell(const CellKey& cell, const std::vector<Measured>& all_a, const std::vector<Measured>& all_b,
                  CompareResult& result) {
  const Measured &a = all_a[0], &b = all_b[0];
  if (const std::string reason = obstacle(a, b); !reason.empty()) {
    CompareRow row = not_comparable(cell, "*", reason);
    row.newly_wrong = a.record->correctness.passed && !b.record->correctness.passed;
    result.rows.push_back(row);
    return;
  }
  for (const std::string& warning : run_warnings(*a.file, *b.file))
    if (std::find(result.warnings.begin(), result.warnings.end(), warning) == result.warnings.end())
      result.warnings.push_back(warning);
  const std::vector<Measured> repeats_a = repeats_of_newest(all_a), repeats_b = repeats_of_newest(all_b);
  const double drift = machine_drift(*a.file, *b.file);
  for (const StageRecord& in_a : a.record->stages) {
    const std::string name = row_name(*a.record, in_a);
    const StageRecord* in_b = find_counterpart(*a.record, in_a, *b.record);
    result.rows.push_back(
        in_b ? compare_stage(cell, name, runs_of(repeats_a, in_a), runs_of(repeats_b, *in_b), drift, result.threshold)
             : not_comparable(cell, name, "only in A"));
  }
  for (const StageRecord& in_b : b.record->stages)
    if (!find_counterpart(*b.record, in_b, *a.record))
      result.rows.push_back(not_comparable(cell, row_name(*b.record, in_b), "only in B"));
}

using Measurements = std::map<CellKey, std::vector<Measured>>;

// A cell of `others` that measured the same under other conditions and has no partner of its own; end if there is none.
Measurements::const_iterator find_other_conditions(const CellKey& key, const Measurements& others,
                                                   const std::set<CellKey>& paired) {
  return std::find_if(others.begin(), others.end(), [&](const auto& other) {
    const CellKey& o = other.first;
    return !paired.contains(o) &&
           std::tie(o.model, o.quant, o.tokens, o.workload) == std::tie(key.model, key.quant, key.tokens, key.workload);
  });
}

}  // namespace

int CompareResult::count(Verdict verdict) const {
  return static_cast<int>(
      std::count_if(rows.begin(), rows.end(), [&](const CompareRow& row) { return row.comparison.verdict == verdict; }));
}

CompareResult compare_results(const std::vector<ResultFile>& a, const std::vector<ResultFile>& b, double threshold) {
  const Measurements cells_a = group_cells(a), cells_b = group_cells(b);
  std::set<CellKey> paired;  // of B
  for (const auto& [key, runs] : cells_a)
    if (cells_b.contains(key)) paired.insert(key);
  CompareResult result;
  result.threshold = threshold;
  for (const auto& [key, runs] : cells_a) {
    auto in_b = cells_b.find(key);
    if (in_b == cells_b.end()) in_b = find_other_conditions(key, cells_b, paired);
    if (in_b == cells_b.end()) {
      result.rows.push_back(not_comparable(key, "*", "only in A"));
      continue;
    }
    paired.insert(in_b->first);
    compare_cell(key, runs, in_b->second, result);
  }
  for (const auto& [key, runs] : cells_b)
    if (!paired.contains(key)) result.rows.push_back(not_comparable(key, "*", "only in B"));
  std::stable_sort(result.rows.begin(), result.rows.end(),
                   [](const CompareRow& x, const CompareRow& y) { return x.cell < y.cell; });
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
