// What the command line of `mixlane tune` says.
#pragma once

#include <string>
#include <vector>

namespace mixlane::bench {

struct TuneOptions {
  std::string stage = "align";
  int device = 0;
  std::vector<std::string> shapes;  // "256x8": experts x experts per token; none = the catalogue's
  std::vector<std::string> ids;     // of align: i32, i64, window
  int ranks = 0;                    // that share the experts; 0: 8 for align's windows and experts, else one per GPU
  std::vector<int> hidden;          // of dispatch and combine; none = the catalogue's. Of experts with shapes: one
  int multiprocessors = 0;          // of dispatch and combine: DispatcherConfig::num_multiprocessors
  int block = 64;                   // of align
  std::vector<std::string> models;  // of experts: names or files; none = the catalogue's
  std::vector<std::string> quants{"none", "fp8"};  // of experts
  int intermediate = 0;                            // of experts with shapes
  std::vector<int64_t> tokens;  // of a call, of dispatch and combine per rank; none = every size that is tuned
  double margin = 0.01;
  std::string out = "tuned";  // a folder, or a .json file
  bool replace = false;
  bool regret = false;
  bool list = false;
  std::string json;  // of the regret's points

  int ranks_of_window() const { return ranks > 0 ? ranks : 8; }
  // As somebody would type it to get the same.
  std::string command() const;
};

// Stages that can be tuned, and doing it; the exit code. Throws unsupported in a build without a GPU backend.
int tune_stage(const TuneOptions& options);

// Every tuned table there is, in the order in which they are asked.
std::string tables_text();

}  // namespace mixlane::bench
