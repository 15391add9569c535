// Results by what was measured: the same cell of several runs side by side.
#pragma once

#include <compare>

#include "results/record.hpp"

namespace mixlane::bench {

struct CellKey {
  std::string model, quant;
  int tokens = 0;
  std::string workload;
  auto operator<=>(const CellKey&) const = default;
};

struct Measured {
  const ResultFile* file = nullptr;
  const Record* record = nullptr;
};

// The measurements of every cell, newest first (by stamp; of equal stamps the later in `files` is newer). Points into
// `files`.
std::map<CellKey, std::vector<Measured>> group_cells(const std::vector<ResultFile>& files);

// nullptr if the record has no such stage.
const StageRecord* find_stage(const Record& record, std::string_view stage);

}  // namespace mixlane::bench
