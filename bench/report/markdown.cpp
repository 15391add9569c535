#include "core/format.hpp"
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

// The cells whose newest run has stages alone, or those that have a layer.
Cells select_cells(const Cells& cells, bool alone) {
  Cells selected;
  for (const auto& cell : cells)
    if (has_stages_alone(*cell.second.front().record) == alone) selected.insert(cell);
  return selected;
}

std::string model_section(const Cells& cells) {
  const CellKey& key = cells.begin()->first;
  std::string text = fmt::format("## {}, quant {}\n\n", key.model, key.quant);
  const Cells layers = select_cells(cells, false), alone = select_cells(cells, true);
  if (!layers.empty())
    text +=
        fmt::format("{}\n### Stages\n\n{}\n### Skew\n\n{}\n", layer_table(layers), stage_table(layers), skew_table(layers));
  if (!alone.empty()) text += "### Stages alone\n\n" + stages_alone(alone);
  return text;
}

}  // namespace

Report make_report(const std::vector<ResultFile>& files, const std::vector<std::string>& skipped) {
  const Cells cells = group_cells(files);
  Report report;
  report.csv = summary_csv(select_cells(cells, false));
  if (const Cells alone = select_cells(cells, true); !alone.empty()) report.stages_csv = stages_csv(alone);
  report.markdown =
      fmt::format("# Mixlane report\n\n{} cells from {} result files. The same numbers for programs: {}.\n\n", cells.size(),
                  files.size(), report.stages_csv.empty() ? "summary.csv" : "summary.csv and stages.csv");
  report.markdown += warnings_section(report_warnings(cells, skipped));
  if (cells.empty()) return report;
  report.markdown += rules_section() + machine_section(cells);
  for (const Cells& model : by_model(cells)) report.markdown += model_section(model);
  report.markdown += history_section(cells);
  return report;
}

}  // namespace mixlane::bench
