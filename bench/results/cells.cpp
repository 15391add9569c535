#include "results/cells.hpp"

#include <algorithm>

namespace mixlane::bench {

std::map<CellKey, std::vector<Measured>> group_cells(const std::vector<ResultFile>& files) {
  std::vector<const ResultFile*> newest_first;
  for (auto file = files.rbegin(); file != files.rend(); ++file) newest_first.push_back(&*file);
  std::stable_sort(newest_first.begin(), newest_first.end(),
                   [](const ResultFile* a, const ResultFile* b) { return a->stamp > b->stamp; });
  std::map<CellKey, std::vector<Measured>> cells;
  for (const ResultFile* file : newest_first)
    for (const Record& record : file->records)
      cells[{file->model, file->quant, record.tokens, record.workload, file->device, record.mode, record.cache}].push_back(
          {file, &record});
  return cells;
}

const StageRecord* find_stage(const Record& record, std::string_view stage) {
  const auto found = std::find_if(record.stages.begin(), record.stages.end(),
                                  [&](const StageRecord& candidate) { return candidate.stage == stage; });
  return found == record.stages.end() ? nullptr : &*found;
}

const StageRecord* find_row(const Record& record, const StageRecord& row) {
  const auto found = std::find_if(record.stages.begin(), record.stages.end(), [&](const StageRecord& each) {
    return each.stage == row.stage && each.options == row.options && each.variant == row.variant;
  });
  return found == record.stages.end() ? nullptr : &*found;
}

bool has_stages_alone(const Record& record) {
  return !record.stages.empty() && !record.stages.front().correctness.reference.empty();
}

namespace {

bool alike(const StageRecord& a, const StageRecord& b) { return a.stage == b.stage && a.options == b.options; }

auto count_alike(const Record& record, const StageRecord& stage) {
  return std::count_if(record.stages.begin(), record.stages.end(), [&](const auto& other) { return alike(other, stage); });
}

}  // namespace

const StageRecord* find_counterpart(const Record& of, const StageRecord& stage, const Record& in) {
  const StageRecord* only = nullptr;
  for (const StageRecord& candidate : in.stages) {
    if (!alike(candidate, stage)) continue;
    if (candidate.variant == stage.variant) return &candidate;
    only = &candidate;
  }
  return count_alike(of, stage) == 1 && count_alike(in, stage) == 1 ? only : nullptr;
}

std::string row_name(const Record& record, const StageRecord& stage) {
  std::string name = stage.stage;
  if (!stage.options.empty()) name += " " + stage.options;
  if (count_alike(record, stage) > 1) name += " " + stage.variant;
  return name;
}

}  // namespace mixlane::bench
