#include "stage/table.hpp"

#include <algorithm>

#include "core/format.hpp"
#include "exchange/table.hpp"
#include "report/format.hpp"
#include "results/cells.hpp"

namespace mixlane::bench {
namespace {

std::string time_text(const StageRecord* stage) {
  return stage ? format_us(stage->time.median_us) + (stage->time.converged ? "" : "!") : "-";
}

// "100 - 300" where they differ.
std::string sample_counts(const std::vector<Record>& records, const StageRecord& row) {
  int least = 0, most = 0;
  for (const Record& record : records)
    if (const StageRecord* stage = find_row(record, row)) {
      least = least == 0 ? stage->time.n : std::min(least, stage->time.n);
      most = std::max(most, stage->time.n);
    }
  return least == most ? std::to_string(least) : fmt::format("{}-{}", least, most);
}

std::vector<std::string> row_cells(const std::vector<Record>& records, const StageRecord& row) {
  std::vector<std::string> cells = {row.stage, row.options, row.variant + (row.automatic ? " *" : "")};
  for (const Record& record : records) cells.push_back(time_text(find_row(record, row)));
  const StageRecord& last = *find_row(records.back(), row);
  const std::string spread = format_us(last.time.p10_us) + " - " + format_us(last.time.p90_us);
  const double us = last.time.median_us;
  const std::string rate = us > 0 ? fmt::format("{:.0f}", static_cast<double>(last.bytes) / us * 1e-3) : "-";
  cells.insert(cells.end(), {spread, sample_counts(records, row), rate, format_us(last.sol_us),
                             format_percent(last.sol_share), last.bound.empty() ? "none" : last.bound});
  return cells;
}

}  // namespace

std::string stages_alone_legend(const ResultFile& file) {
  std::string text =
      "us per call: medians of n samples, each the mean of many calls on one stream, launch or graph-node cost included; ! "
      "not\n"
      "converged, * what auto takes. p10 - p90 and what follows it: of the last condition.";
  if (file.peaks.copy_gbs <= 0) return text;
  return text +
         fmt::format(
             " SOL us: what the stage's bytes and flops take at\n"
             "this GPU's peaks: memory {:.0f} GB/s, bf16 {:.0f} TFLOP/s; data that stays in L2 can be faster. An empty\n"
             "kernel costs {:.2f} us in a graph and {:.2f} us from the host.",
             std::max(file.peaks.copy_gbs, file.peaks.read_gbs), file.peaks.bf16_tflops, file.peaks.graph_node_us,
             file.peaks.launch_us);
}

std::string stages_alone_table(const ResultFile& file, const std::vector<Record>& records) {
  if (records.empty() || records.front().stages.empty()) return "";
  std::vector<std::string> header = {"stage", "options", "variant"};
  for (const Record& record : records) header.push_back(record.mode + " " + record.cache);
  header.insert(header.end(), {"p10 - p90", "n", "GB/s", "SOL us", "SOL %", "bound"});
  Table table(header);
  for (const StageRecord& row : records.front().stages)
    if (!is_exchange_row(row)) table.add(row_cells(records, row));
  if (table.empty()) return "";
  return fmt::format("{} tokens={} {} quant={} {}   correct against the CPU\n{}", file.model, records.front().tokens,
                     records.front().workload, file.quant, file.device, table.plain());
}

}  // namespace mixlane::bench
