#include "exchange/table.hpp"

#include <algorithm>

#include "core/format.hpp"
#include "report/format.hpp"
#include "results/cells.hpp"

namespace mixlane::bench {
namespace {

std::string rate(int64_t bytes, double us) {
  return us > 0 && bytes > 0 ? fmt::format("{:.0f}", static_cast<double>(bytes) / us * 1e-3) : "-";
}

// Against the first row of the same stage and options.
std::string ratio(const Record& record, const StageRecord& row) {
  for (const StageRecord& stage : record.stages)
    if (stage.stage == row.stage && stage.options == row.options)
      return stage.time.median_us > 0 ? fmt::format("{:.2f}", row.time.median_us / stage.time.median_us) : "-";
  return "-";
}

}  // namespace

bool is_exchange_row(const StageRecord& stage) {
  return stage.stage == "dispatch" || stage.stage == "combine" || stage.stage == "exchange" || stage.stage == "overlap";
}

std::string exchange_table(const ResultFile& file, const std::vector<Record>& records) {
  std::vector<std::string> header = {"stage", "options", "variant"};
  for (const Record& record : records) header.push_back(record.mode + " " + record.cache);
  header.insert(header.end(), {"p10 - p90", "n", "remote MB", "remote GB/s", "logical GB/s", "SOL us", "ratio"});
  Table table(header);
  if (records.empty()) return "";
  for (const StageRecord& row : records.front().stages) {
    if (!is_exchange_row(row)) continue;
    std::vector<std::string> cells = {row.stage, row.options, row.variant};
    const StageRecord* last = &row;
    const Record* last_record = &records.front();
    for (const Record& record : records) {
      const StageRecord* const stage = find_row(record, row);
      cells.push_back(stage ? format_us(stage->time.median_us) + (stage->time.converged ? "" : "!") : "-");
      if (stage) last = stage, last_record = &record;
    }
    cells.insert(cells.end(),
                 {format_us(last->time.p10_us) + " - " + format_us(last->time.p90_us), std::to_string(last->time.n),
                  fmt::format("{:.2f}", static_cast<double>(last->remote_bytes) * 1e-6),
                  rate(last->remote_bytes, last->time.median_us), rate(last->logical_bytes, last->time.median_us),
                  format_us(last->sol_us), ratio(*last_record, *last)});
    table.add(cells);
  }
  if (table.empty()) return "";
  return fmt::format("{} tokens={} {} quant={} ranks={} {}   correct against the CPU; symmetric memory {} per rank\n{}",
                     file.model, records.front().tokens, records.front().workload, file.quant, file.ranks, file.device,
                     format_bytes(static_cast<double>(records.front().window_bytes)), table.plain());
}

}  // namespace mixlane::bench
