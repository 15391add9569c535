#include <set>

#include "core/format.hpp"
#include "report/format.hpp"
#include "report/report.hpp"

namespace mixlane::bench {
namespace {

std::string cell_name(const CellKey& key) {
  return fmt::format("{} {} tokens={} {}", key.model, key.quant, key.tokens, key.workload);
}

void time_warning(const std::string& what, const Statistic& time, std::vector<std::string>& warnings) {
  if (!time.converged)
    warnings.push_back(
        fmt::format("not converged: {}: the median is known to +-{:.1f} % after {} samples; measure longer or on "
                    "a quieter machine",
                    what, time.rel_half_width * 100, time.n));
}

std::string joined(const std::vector<std::string>& texts) {
  std::string all;
  for (const std::string& text : texts) all += (all.empty() ? "" : ", ") + text;
  return all;
}

void cell_warnings(const CellKey& key, const Record& record, std::vector<std::string>& warnings) {
  const Correctness& c = record.correctness;
  if (!c.passed && c.checked_tokens > 0)
    warnings.push_back(fmt::format("WRONG RESULT: {}: relative error {:.2e} against {} exceeds {:.2e}; do not use its times",
                                   cell_name(key), c.rel_error, c.reference, c.tolerance));
  if (c.checked_tokens == 0) warnings.push_back(fmt::format("not checked for correctness: {}", cell_name(key)));
  if (has_stages_alone(record)) {
    for (const StageRecord& stage : record.stages)
      time_warning(fmt::format("{} {} {} {}", cell_name(key), key.mode, key.cache, row_name(record, stage)), stage.time,
                   warnings);
  } else if (const StageRecord* layer = find_stage(record, "layer")) {
    time_warning(cell_name(key), layer->time, warnings);
  } else {
    warnings.push_back(fmt::format("no time of the layer: {}", cell_name(key)));
  }
}

void file_warnings(const ResultFile& file, std::vector<std::string>& warnings) {
  if (!file.complete)
    warnings.push_back(fmt::format("incomplete: run {} of {} {} was interrupted; the same command resumes it: {}",
                                   file.stamp, file.model, file.quant, file.command));
  if (!file.unverified.empty())
    warnings.push_back(fmt::format("unverified model: nobody has checked these values of {}: {}", file.model,
                                   file.unverified.front() == "*" ? "all" : joined(file.unverified)));
  for (const std::string& reason : file.peaks.skipped)
    warnings.push_back(fmt::format("peak not measured in run {}: {}", file.stamp, reason));
}

}  // namespace

std::vector<std::string> report_warnings(const Cells& cells, const std::vector<std::string>& skipped) {
  std::vector<std::string> all;
  for (const auto& [key, runs] : cells) {
    cell_warnings(key, *runs.front().record, all);
    file_warnings(*runs.front().file, all);
  }
  all.insert(all.end(), skipped.begin(), skipped.end());
  std::vector<std::string> once;
  std::set<std::string> seen;
  for (const std::string& warning : all)
    if (seen.insert(warning).second) once.push_back(warning);
  return once;
}

}  // namespace mixlane::bench
