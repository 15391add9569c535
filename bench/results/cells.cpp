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
      cells[{file->model, file->quant, record.tokens, record.workload}].push_back({file, &record});
  return cells;
}

const StageRecord* find_stage(const Record& record, std::string_view stage) {
  const auto found = std::find_if(record.stages.begin(), record.stages.end(),
                                  [&](const StageRecord& candidate) { return candidate.stage == stage; });
  return found == record.stages.end() ? nullptr : &*found;
}

}  // namespace mixlane::bench
