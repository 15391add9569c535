#include <nlohmann/json.hpp>

#include "compare/compare.hpp"
#include "core/format.hpp"
#include "report/format.hpp"

namespace mixlane::bench {
namespace {

double percent(double ratio) { return (ratio - 1) * 100; }

std::vector<std::string> cells_of(const CompareRow& row) {
  std::vector<std::string> cells = {row.cell.model,
                                    row.cell.quant,
                                    std::to_string(row.cell.tokens),
                                    row.cell.workload,
                                    row.cell.mode + " " + row.cell.cache,
                                    row.stage};
  if (row.reason.empty()) {
    const Comparison& c = row.comparison;
    cells.push_back(format_us(row.a_us) + " -> " + format_us(row.b_us));
    cells.push_back(fmt::format("{:+.1f} %", percent(c.ratio)));
    cells.push_back(fmt::format("[{:+.1f}, {:+.1f}]", percent(c.interval.low), percent(c.interval.high)));
    cells.emplace_back(name(c.verdict));
  } else {
    cells.insert(cells.end(), {"-", "-", "-", std::string(name(Verdict::not_comparable)) + " " + row.reason});
  }
  return cells;
}

}  // namespace

std::string to_text(const CompareResult& result) {
  Table table(
      {"model", "quant", "tokens", "workload", "conditions", "stage", "us A -> B", "change", "95 % interval", "verdict"});
  for (const CompareRow& row : result.rows) table.add(cells_of(row));
  std::string text = table.empty() ? " nothing to compare\n" : table.plain();
  for (const std::string& warning : result.warnings) text += " warning: " + warning + "\n";
  std::string counts;
  for (const Verdict verdict : {Verdict::fast, Verdict::same, Verdict::slow, Verdict::ambiguous, Verdict::not_comparable})
    if (const int count = result.count(verdict)) counts += fmt::format("{} {} ", count, name(verdict));
  return text + fmt::format(" {}(threshold {:g} %)\n", counts, result.threshold * 100);
}

nlohmann::ordered_json to_json(const CompareResult& result) {
  nlohmann::ordered_json json;
  json["threshold"] = result.threshold;
  for (const Verdict verdict : {Verdict::fast, Verdict::same, Verdict::slow, Verdict::ambiguous, Verdict::not_comparable})
    json["counts"][std::string(name(verdict))] = result.count(verdict);
  json["warnings"] = result.warnings;
  json["rows"] = nlohmann::ordered_json::array();
  for (const CompareRow& row : result.rows) {
    const Comparison& c = row.comparison;
    nlohmann::ordered_json entry = {
        {"model", row.cell.model},       {"quant", row.cell.quant},   {"tokens", row.cell.tokens},
        {"workload", row.cell.workload}, {"device", row.cell.device}, {"mode", row.cell.mode},
        {"cache", row.cell.cache},       {"stage", row.stage},        {"verdict", name(c.verdict)}};
    if (row.reason.empty()) {
      entry.update(
          {{"a_us", row.a_us}, {"b_us", row.b_us}, {"ratio", c.ratio}, {"low", c.interval.low}, {"high", c.interval.high}});
    } else {
      entry.update({{"reason", row.reason}, {"newly_wrong", row.newly_wrong}});
    }
    json["rows"].push_back(entry);
  }
  return json;
}

}  // namespace mixlane::bench
