// Timelines of a few samples per cell as Chrome trace events, which Perfetto and chrome://tracing open.
#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "measure/sampler.hpp"
#include "profile/kernel_profile.hpp"

namespace mixlane::bench {

struct TraceCell {
  std::string workload;
  int tokens = 0;
  std::vector<std::string> variants;  // id per Stage, the slices' names
};

// One process per rank. Each sample begins at its gate, which is one instant for all ranks: its slices line up without
// any clock correction. Samples are laid one behind the other with a gap; args.gate_ns holds the true time.
class TraceWriter {
 public:
  TraceWriter(int num_ranks, std::string title);
  // Goes on behind what an interrupted sweep wrote to `folder`, if it wrote something.
  void resume(const std::filesystem::path& folder);
  // Keeps up to kSamplesPerCell of the samples: those nearest to the median, in their order.
  void add(const TraceCell& cell, const SampleSet& set);
  // One profiled sample: the kernels of every rank, each stream on a line of its own below the stages, in true distances
  // from the first of all. A slice is named after the variant that `known` and the rule of profile/kernel_names.hpp give it;
  // one that belongs to none has its kernel's name and the category "unattributed".
  void add_kernels(const TraceCell& cell, const std::vector<std::vector<KernelSpan>>& of_ranks,
                   std::span<const std::string> known);
  // rank<r>.json for each rank, and merged.json with all of them.
  void write(const std::filesystem::path& folder) const;

  static constexpr int kSamplesPerCell = 3;

 private:
  nlohmann::ordered_json document(const std::vector<const nlohmann::ordered_json*>& events) const;

  std::string title_;
  std::vector<nlohmann::ordered_json> events_;          // an array per rank
  std::set<std::pair<size_t, int64_t>> named_streams_;  // rank, thread
  double cursor_us_ = 0;
};

}  // namespace mixlane::bench
