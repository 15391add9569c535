#include <algorithm>
#include <cmath>

#include "core/format.hpp"
#include "report/report.hpp"

namespace mixlane::bench {
namespace {

std::string quoted(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? std::string("\"\"") : std::string(1, c);
  return out + "\"";
}

std::string number(double value) { return std::isfinite(value) ? fmt::format("{}", value) : ""; }
std::string truth(bool value) { return value ? "true" : "false"; }

// The stages of all cells; those of the layer's data flow first and always, so that reports have the same columns.
std::vector<std::string> stage_columns(const Cells& cells) {
  std::vector<std::string> stages = {"routing", "dispatch", "align", "experts", "shared_experts", "combine"};
  for (const auto& [key, runs] : cells)
    for (const StageRecord& stage : runs.front().record->stages)
      if (stage.stage != "layer" && std::find(stages.begin(), stages.end(), stage.stage) == stages.end())
        stages.push_back(stage.stage);
  return stages;
}

std::vector<std::string> header(const std::vector<std::string>& stages) {
  std::vector<std::string> row = {"model",           "quant",          "tokens",
                                  "workload",        "layer_us",       "layer_p10_us",
                                  "layer_p90_us",    "layer_n",        "layer_rel_half_width",
                                  "layer_converged", "layer_sol_share"};
  for (const std::string& stage : stages)
    for (const char* column : {"_us", "_variant", "_sol_share"}) row.push_back(stage + column);
  for (const char* column :
       {"passed", "rel_error", "tolerance", "ranks", "device", "mode", "cache", "stamp", "commit", "history"})
    row.push_back(column);
  return row;
}

void add_layer(const StageRecord* layer, std::vector<std::string>& row) {
  if (!layer) {
    row.insert(row.end(), 7, "");
    return;
  }
  const Statistic& time = layer->time;
  for (const std::string& cell : {number(time.median_us), number(time.p10_us), number(time.p90_us), std::to_string(time.n),
                                  number(time.rel_half_width), truth(time.converged), number(layer->sol_share)})
    row.push_back(cell);
}

// "2026-09-30T10-12-33=118.4;..." of the older runs, newest first.
std::string history(const std::vector<Measured>& runs) {
  std::string text;
  for (size_t i = 1; i < runs.size(); ++i)
    if (const StageRecord* layer = find_stage(*runs[i].record, "layer"))
      text += fmt::format("{}{}={}", text.empty() ? "" : ";", runs[i].file->stamp, layer->time.median_us);
  return text;
}

std::vector<std::string> cell_row(const CellKey& key, const std::vector<Measured>& runs,
                                  const std::vector<std::string>& stages) {
  const auto& [file, record] = runs.front();
  std::vector<std::string> row = {key.model, key.quant, std::to_string(key.tokens), key.workload};
  add_layer(find_stage(*record, "layer"), row);
  for (const std::string& name : stages) {
    const StageRecord* stage = find_stage(*record, name);
    row.push_back(stage ? number(stage->time.median_us) : "");
    row.push_back(stage ? stage->variant : "");
    row.push_back(stage ? number(stage->sol_share) : "");
  }
  const auto commit = file->environment.find("commit");
  for (const std::string& cell :
       {truth(record->correctness.passed), number(record->correctness.rel_error), number(record->correctness.tolerance),
        std::to_string(file->ranks), file->device, record->mode, record->cache, file->stamp,
        commit == file->environment.end() ? std::string() : commit->second, history(runs)})
    row.push_back(cell);
  return row;
}

std::string line(const std::vector<std::string>& row) {
  std::string text;
  for (size_t i = 0; i < row.size(); ++i) text += (i == 0 ? "" : ",") + quoted(row[i]);
  return text + "\n";
}

// "align.cluster=3.91;not attributed=0.02"
std::string kernels_text(const std::vector<KernelTime>& kernels) {
  std::string text;
  for (const KernelTime& kernel : kernels)
    text += fmt::format("{}{}={}", text.empty() ? "" : ";", kernel.variant.empty() ? "not attributed" : kernel.variant,
                        kernel.us);
  return text;
}

std::vector<std::string> stage_row(const CellKey& key, const Measured& run, const StageRecord& stage) {
  const Statistic& time = stage.time;
  const auto commit = run.file->environment.find("commit");
  return {key.model,
          key.quant,
          std::to_string(key.tokens),
          key.workload,
          stage.stage,
          stage.options,
          stage.variant,
          truth(stage.automatic),
          key.device,
          key.mode,
          key.cache,
          number(time.median_us),
          number(time.p10_us),
          number(time.p90_us),
          std::to_string(time.n),
          std::to_string(stage.calls_per_sample),
          number(time.rel_half_width),
          truth(time.converged),
          std::to_string(stage.bytes),
          std::to_string(stage.flops),
          std::to_string(stage.remote_bytes),
          number(stage.sol_us),
          number(stage.sol_share),
          stage.bound,
          truth(stage.correctness.passed),
          number(stage.correctness.rel_error),
          stage.correctness.reference,
          kernels_text(stage.kernels),
          run.file->stamp,
          commit == run.file->environment.end() ? std::string() : commit->second};
}

}  // namespace

std::string summary_csv(const Cells& cells) {
  const std::vector<std::string> stages = stage_columns(cells);
  std::string text = line(header(stages));
  for (const auto& [key, runs] : cells) text += line(cell_row(key, runs, stages));
  return text;
}

std::string stages_csv(const Cells& cells) {
  std::string text =
      "model,quant,tokens,workload,stage,options,variant,automatic,device,mode,cache,us,p10_us,p90_us,n,calls_per_sample,"
      "rel_half_width,converged,bytes,flops,remote_bytes,sol_us,sol_share,bound,passed,rel_error,reference,kernels,stamp,"
      "commit\n";
  for (const auto& [key, runs] : cells)
    for (const StageRecord& stage : runs.front().record->stages) text += line(stage_row(key, runs.front(), stage));
  return text;
}

}  // namespace mixlane::bench
