// Stages that were measured alone: variants side by side.

#include <algorithm>
#include <tuple>

#include "core/format.hpp"
#include "report/format.hpp"
#include "report/sections.hpp"

namespace mixlane::bench {
namespace {

// What one table shows.
struct TableKey {
  std::string stage, options, workload, device, mode, cache;
  auto operator<=>(const TableKey&) const = default;
};

struct Row {
  int tokens = 0;
  std::vector<const StageRecord*> variants;
};

using Tables = std::map<TableKey, std::vector<Row>>;

Tables group_tables(const Cells& cells) {
  Tables tables;
  for (const auto& [key, runs] : cells)
    for (const StageRecord& stage : runs.front().record->stages) {
      std::vector<Row>& rows = tables[{stage.stage, stage.options, key.workload, key.device, key.mode, key.cache}];
      if (rows.empty() || rows.back().tokens != key.tokens) rows.push_back({key.tokens, {}});
      rows.back().variants.push_back(&stage);
    }
  return tables;
}

// In the order in which they were first measured.
std::vector<std::string> variants_of(const std::vector<Row>& rows) {
  std::vector<std::string> ids;
  for (const Row& row : rows)
    for (const StageRecord* stage : row.variants)
      if (std::find(ids.begin(), ids.end(), stage->variant) == ids.end()) ids.push_back(stage->variant);
  return ids;
}

// "3.91*": "auto" takes it; "3.91 !": not converged; "-": it does not take these arguments.
std::string time_cell(const Row& row, const std::string& variant) {
  for (const StageRecord* stage : row.variants)
    if (stage->variant == variant)
      return format_us(stage->time.median_us) + (stage->automatic ? "*" : "") + (stage->time.converged ? "" : " !");
  return "-";
}

std::string kernels_text(const StageRecord& stage) {
  std::string text;
  for (const KernelTime& kernel : stage.kernels)
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", kernel.variant.empty() ? "not attributed" : kernel.variant,
                        format_us(kernel.us));
  return text.empty() ? "-" : text;
}

std::string table_text(const std::vector<Row>& rows) {
  const std::vector<std::string> ids = variants_of(rows);
  std::vector<std::string> header = {"tokens"};
  for (const std::string& id : ids) header.push_back(id + " us");
  header.insert(header.end(), {"SOL us", "best: SOL %", "bound", "GB/s", "its kernels us"});
  Table table(header);
  for (const Row& row : rows) {
    std::vector<std::string> cells = {std::to_string(row.tokens)};
    for (const std::string& id : ids) cells.push_back(time_cell(row, id));
    const StageRecord& best = **std::min_element(row.variants.begin(), row.variants.end(),
                                                 [](auto* a, auto* b) { return a->time.median_us < b->time.median_us; });
    const double us = best.time.median_us;
    cells.insert(cells.end(),
                 {format_us(best.sol_us), format_percent(best.sol_share), best.bound.empty() ? "none" : best.bound,
                  us > 0 ? fmt::format("{:.0f}", static_cast<double>(best.bytes) / us * 1e-3) : "-", kernels_text(best)});
    table.add(cells);
  }
  return table.markdown();
}

}  // namespace

std::string stages_alone(const Cells& cells) {
  std::string text = "Medians in us; * is what `auto` takes, ! not converged, - takes no such arguments.\n\n";
  for (const auto& [key, rows] : group_tables(cells))
    text += fmt::format("{}{}, {}, {}, {}, {}:\n\n{}\n", key.stage, key.options.empty() ? "" : " " + key.options,
                        key.workload, key.device, key.mode, key.cache, table_text(rows));
  return text;
}

}  // namespace mixlane::bench
