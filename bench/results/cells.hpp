// Results by what was measured: the same cell of several runs side by side.
#pragma once

#include <compare>

#include "results/record.hpp"

namespace mixlane::bench {

struct CellKey {
  std::string model, quant;
  int tokens = 0;
  std::string workload;
  std::string device, mode, cache;
  auto operator<=>(const CellKey&) const = default;
};

struct Measured {
  const ResultFile* file = nullptr;
  const Record* record = nullptr;
};

// The measurements of every cell, newest first (by stamp; of equal stamps the later in `files` is newer). Points into
// `files`.
std::map<CellKey, std::vector<Measured>> group_cells(const std::vector<ResultFile>& files);

// The first record of the stage; nullptr if there is none.
const StageRecord* find_stage(const Record& record, std::string_view stage);

// The record's row of the same stage, options and variant; nullptr if there is none.
const StageRecord* find_row(const Record& record, const StageRecord& row);

// A record of stages that were checked and measured each on its own, not as parts of a layer.
bool has_stages_alone(const Record& record);

// The record of `in` that measured the same as `stage` of `of`: the same stage, options and variant; or, where both records
// have these options of that stage once, whatever their variants. nullptr if there is none.
const StageRecord* find_counterpart(const Record& of, const StageRecord& stage, const Record& in);

// "align", or "align block=64" where the stage has options, with the variant behind it where the record has several.
std::string row_name(const Record& record, const StageRecord& stage);

}  // namespace mixlane::bench
