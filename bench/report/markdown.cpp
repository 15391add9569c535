#include <fmt/format.h>

#include "report/report.hpp"
#include "report/sections.hpp"

namespace mixlane::bench {
namespace {

std::string warnings_section(const std::vector<std::string>& warnings) {
  if (warnings.empty()) return "";
  std::string text = "## Warnings\n\n";
  for (const std::string& warning : warnings) text += "- " + warning + "\n";
  return text + "\n";
}

// Cells by model and quantisation, in order.
std::vector<Cells> by_model(const Cells& cells) {
  std::vector<Cells> models;
  for (const auto& cell : cells) {
    const CellKey& key = cell.first;
    if (models.empty() || models.back().begin()->first.model != key.model || models.back().begin()->first.quant != key.quant)
      models.emplace_back();
    models.back().insert(cell);
  }
  return models;
}

std::string model_section(const Cells& cells) {
  const CellKey& key = cells.begin()->first;
  return fmt::format("## {}, quant {}\n\n{}\n### Stages\n\n{}\n### Skew\n\n{}\n", key.model, key.quant, layer_table(cells),
                     stage_table(cells), skew_table(cells));
}

}  // namespace

Report make_report(const std::vector<ResultFile>& files, const std::vector<std::string>& skipped) {
  const Cells cells = group_cells(files);
  Report report;
  report.csv = summary_csv(cells);
  report.markdown =
      fmt::format("# Mixlane report\n\n{} cells from {} result files. The same numbers for programs: summary.csv.\n\n",
                  cells.size(), files.size());
  report.markdown += warnings_section(report_warnings(cells, skipped));
  if (cells.empty()) return report;
  report.markdown += rules_section() + machine_section(cells);
  for (const Cells& model : by_model(cells)) report.markdown += model_section(model);
  report.markdown += history_section(cells);
  return report;
}

}  // namespace mixlane::bench
