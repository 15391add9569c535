#include "report/sections.hpp"

#include <algorithm>
#include <numeric>

#include "core/format.hpp"
#include "report/format.hpp"
#include "stats/stats.hpp"

namespace mixlane::bench {
namespace {

std::string tokens_of(const CellKey& key) { return std::to_string(key.tokens); }

std::string spread(const Statistic& time) { return format_us(time.p10_us) + " - " + format_us(time.p90_us); }

std::string interval(const Statistic& time) {
  return fmt::format("{:.1f} %{}", time.rel_half_width * 100, time.converged ? "" : " !");
}

std::string correctness(const Record& record) {
  const Correctness& c = record.correctness;
  if (c.checked_tokens == 0) return "not checked";
  return fmt::format("{:.1e}{}", c.rel_error, c.passed ? "" : " FAILED");
}

std::string conditions(const Measured& run) {
  return fmt::format("{} ranks, {}, {}, {}", run.file->ranks, run.file->device, run.record->mode, run.record->cache);
}

std::string text_of(const ResultFile& file, const std::string& key) {
  const auto found = file.environment.find(key);
  return found == file.environment.end() ? "unknown" : found->second;
}

double max_over_mean(const auto& values) {
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  return sum > 0 ? static_cast<double>(*std::max_element(values.begin(), values.end())) * values.size() / sum : 0;
}

std::string range(const auto& values) {
  if (values.empty()) return "-";
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  return *low == *high ? fmt::format("{}", *low) : fmt::format("{} - {}", *low, *high);
}

// "1.18 (rank 6)": the slowest rank's median over the median rank's.
std::string slowest_rank(const std::vector<double>& rank_median_us) {
  const double middle = quantile(rank_median_us, 0.5);
  if (rank_median_us.size() < 2 || middle <= 0) return "-";
  const auto slowest = std::max_element(rank_median_us.begin(), rank_median_us.end());
  return fmt::format("{:.2f} (rank {})", *slowest / middle, slowest - rank_median_us.begin());
}

std::vector<const ResultFile*> distinct_files(const Cells& cells) {
  std::vector<const ResultFile*> files;
  for (const auto& [key, runs] : cells)
    for (const Measured& run : runs)
      if (std::find(files.begin(), files.end(), run.file) == files.end()) files.push_back(run.file);
  std::stable_sort(files.begin(), files.end(), [](auto* a, auto* b) { return a->stamp > b->stamp; });
  return files;
}

std::string peaks_table(const std::vector<const ResultFile*>& files) {
  Table table({"run", "copy GB/s", "read GB/s", "exchange GB/s", "bf16 TFLOP/s", "f32 TFLOP/s"});
  std::vector<std::string> seen;
  const auto number = [](double value) { return value > 0 ? fmt::format("{:.3g}", value) : std::string("-"); };
  for (const ResultFile* file : files) {
    if (std::find(seen.begin(), seen.end(), file->stamp) != seen.end()) continue;
    seen.push_back(file->stamp);
    const Peaks& p = file->peaks;
    table.add({file->stamp, number(p.copy_gbs), number(p.read_gbs), number(p.exchange_gbs), number(p.bf16_tflops),
               number(p.f32_tflops)});
  }
  return table.markdown();
}

// What older runs had that the newest has not.
std::string differences(const std::vector<const ResultFile*>& files) {
  std::string text;
  std::vector<std::string> seen = {files.front()->stamp};
  for (const ResultFile* file : files) {
    if (std::find(seen.begin(), seen.end(), file->stamp) != seen.end()) continue;
    seen.push_back(file->stamp);
    std::string line;
    for (const char* key : {"host", "cpu", "gpu", "gpu_driver", "cores", "kernel", "compiler", "onednn", "commit"})
      if (const std::string value = text_of(*file, key); value != text_of(*files.front(), key))
        line += fmt::format("{}{} {}", line.empty() ? "" : ", ", key, value);
    if (!line.empty()) text += fmt::format("- {} differs: {}\n", file->stamp, line);
  }
  return text.empty() ? "" : "\n" + text;
}

// "dispatch+combine" times two stages again, back to back.
bool part_of_layer(const StageRecord& stage) { return stage.stage != "layer" && stage.stage.find('+') == std::string::npos; }

void add_stage_rows(Table& table, const CellKey& key, const Record& record) {
  const StageRecord* layer = find_stage(record, "layer");
  const double layer_us = layer ? layer->time.median_us : 0;
  double sum_us = 0;
  for (const StageRecord& stage : record.stages) {
    const double us = stage.time.median_us;
    if (part_of_layer(stage)) sum_us += us;
    table.add({tokens_of(key), key.workload, stage.stage, stage.variant.empty() ? "-" : stage.variant, format_us(us),
               interval(stage.time), format_percent(layer_us > 0 ? us / layer_us : 0), format_us(stage.wait_us),
               format_percent(stage.sol_share), stage.bound.empty() ? "none" : stage.bound,
               format_bytes(static_cast<double>(stage.bytes)), format_bytes(static_cast<double>(stage.logical_bytes)),
               format_bytes(static_cast<double>(stage.remote_bytes)), slowest_rank(stage.rank_median_us)});
  }
  if (record.stages.size() > 2 && layer)
    table.add({tokens_of(key), key.workload, "sum of stages", "-", format_us(sum_us), "",
               format_percent(layer_us > 0 ? sum_us / layer_us : 0), "", "", "", "", "", "", ""});
}

}  // namespace

std::string rules_section() {
  return R"(## How to read it

- A sample starts on all ranks at once, behind a gate; its value is the maximum over ranks. Times are medians in us; p10 - p90
  is the spread of n samples; +- is half the 95 % interval of the median, with "!" where it did not reach its target in time.
- Every cell was checked against the reference before it was timed; the error is the norm of the difference over the norm of
  the reference.
- Speed of light (SOL) = max(bytes / memory rate, remote bytes / exchange rate, flops / matrix rate) of the rank with most work,
  by the peaks measured in the same run; SOL % is its share of the median, "bound" the term that decides.
- Wait is the part of a stage's time that passed before the last rank began it: the skew of the stage before.
- Stages alone are timed on a stream of one device: graph = calls captured in a graph and replayed, eager = each enqueued by
  the host; hot = on data that the call before left in the caches, cold = on data that is in memory only. A sample is the mean
  of many calls. Launch and graph-node costs are part of it.
- Logical bytes are all rows received, a rank's own included; remote bytes are those that came from other ranks. The two never
  share a column.
- The layer is timed as a whole: the sum of its stages exceeds it where stages overlap.

)";
}

std::string machine_section(const Cells& cells) {
  const std::vector<const ResultFile*> files = distinct_files(cells);
  const ResultFile& newest = *files.front();
  Table environment({"of the newest run, " + newest.stamp, ""});
  environment.add({"command", newest.command});
  for (const auto& [key, value] : newest.environment) environment.add({key, value});
  return "## Machine\n\n" + environment.markdown() + differences(files) + "\nPeaks that the speed of light uses:\n\n" +
         peaks_table(files) + "\n";
}

std::string layer_table(const Cells& cells) {
  Table table(
      {"tokens", "workload", "layer us", "p10 - p90", "+-", "n", "SOL %", "bound", "rel error", "conditions", "run"});
  for (const auto& [key, runs] : cells) {
    const auto& [file, record] = runs.front();
    const StageRecord* layer = find_stage(*record, "layer");
    if (layer) {
      table.add({tokens_of(key), key.workload, format_us(layer->time.median_us), spread(layer->time), interval(layer->time),
                 std::to_string(layer->time.n), format_percent(layer->sol_share),
                 layer->bound.empty() ? "none" : layer->bound, correctness(*record), conditions(runs.front()), file->stamp});
    } else {
      table.add({tokens_of(key), key.workload, "-", "-", "-", "0", "-", "none", correctness(*record),
                 conditions(runs.front()), file->stamp});
    }
  }
  return table.markdown();
}

std::string stage_table(const Cells& cells) {
  Table table({"tokens", "workload", "stage", "variant", "us", "+-", "% of layer", "wait us", "SOL %", "bound", "bytes",
               "logical bytes", "remote bytes", "slowest / median rank"});
  for (const auto& [key, runs] : cells) add_stage_rows(table, key, *runs.front().record);
  return table.empty() ? "" : table.markdown();
}

std::string skew_table(const Cells& cells) {
  Table table({"tokens", "workload", "tokens per rank", "experts: max / mean pairs", "idle experts", "rows per rank",
               "ranks: max / mean rows"});
  for (const auto& [key, runs] : cells) {
    const Record& record = *runs.front().record;
    const auto idle = std::count(record.expert_pairs.begin(), record.expert_pairs.end(), 0);
    table.add({tokens_of(key), key.workload, range(record.rank_tokens),
               fmt::format("{:.2f}", max_over_mean(record.expert_pairs)),
               fmt::format("{} of {}", idle, record.expert_pairs.size()), range(record.rank_rows),
               fmt::format("{:.2f}", max_over_mean(record.rank_rows))});
  }
  return table.markdown();
}

std::string history_section(const Cells& cells) {
  Table table(
      {"model", "quant", "tokens", "workload", "run", "layer us", "p10 - p90", "n", "x newest", "conditions", "commit"});
  for (const auto& [key, runs] : cells) {
    if (runs.size() < 2) continue;
    const StageRecord* newest = find_stage(*runs.front().record, "layer");
    for (const auto& [file, record] : runs) {
      const StageRecord* layer = find_stage(*record, "layer");
      if (!layer) continue;
      const double ratio = newest && newest->time.median_us > 0 ? layer->time.median_us / newest->time.median_us : 0;
      table.add({key.model, key.quant, tokens_of(key), key.workload, file->stamp, format_us(layer->time.median_us),
                 spread(layer->time), std::to_string(layer->time.n), ratio > 0 ? fmt::format("{:.3f}", ratio) : "-",
                 conditions({file, record}), text_of(*file, "commit")});
    }
  }
  if (table.empty()) return "";
  return "## History\n\nCells measured more than once, newest first; `mixlane compare` tells noise from change.\n\n" +
         table.markdown() + "\n";
}

}  // namespace mixlane::bench
