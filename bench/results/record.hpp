// What a benchmark run stores: one ResultFile per model and quantisation, one Record per tokens x workload x mode x cache.
// The JSON keys are the field names; docs/results-format.md is the user's description of them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace mixlane::bench {

// 2: mode and cache are the records'; stages have options, variants side by side, a check and kernels of their own; peaks of
// GPUs.
inline constexpr int kSchemaVersion = 2;

// Of samples that are each the maximum over ranks.
struct Statistic {
  double median_us = 0, p10_us = 0, p90_us = 0, min_us = 0, max_us = 0;
  int n = 0;
  double rel_half_width = 0;  // half the 95 % interval of the median, relative to it
  bool converged = false;     // rel_half_width reached the target before the time limit
};

struct Correctness {
  bool passed = false;
  int checked_tokens = 0;  // of all ranks; 0 = not checked
  double rel_error = 0;    // Frobenius norm of the difference / of the reference; of ids and codes the share that differs
  double tolerance = 0;
  std::string reference;  // what it was compared with
};

// Device time per call of the kernels of one variant; variant is empty for kernels that belong to none.
struct KernelTime {
  std::string variant;
  double us = 0;
};

// A record's stages differ in stage, variant or options.
struct StageRecord {
  std::string stage;  // "routing", "dispatch", "align", "experts", "shared_experts", "combine", "layer"; alone also "quant"
                      // and "chain"
  std::string variant;              // resolved id: "align.cpu"; several joined by "+"; empty for the layer
  std::string options;              // what else was chosen, "block=128 ids=i32"; empty for stages of a layer
  bool automatic = false;           // alone: what "auto" takes here
  int calls_per_sample = 1;         // a sample is the mean of so many
  Correctness correctness;          // alone; a layer's stages are checked with the layer
  std::vector<KernelTime> kernels;  // per call, from a run apart; empty if not profiled
  Statistic time;
  double wait_us = 0;  // dispatch, combine: median of the slowest rank's time until the last rank began the stage
  std::vector<double> rank_median_us;  // per rank
  std::vector<double> samples_us;      // the samples themselves, in order: what `compare` works on
  // Worst rank's work, from the stage's formula in src/ops/<stage>/op.hpp.
  int64_t bytes = 0;  // read + written, each byte once
  int64_t flops = 0;
  int64_t logical_bytes = 0;  // received, a rank's own rows included
  int64_t remote_bytes = 0;   // received from other ranks
  double sol_us = 0;          // speed of light: max(bytes / memory rate, remote bytes / exchange rate, flops / matrix rate)
  double sol_share = 0;       // sol_us / median_us
  std::string bound;          // which term: "memory", "link", "matrix" or "none"
};

struct Record {
  int tokens = 0;  // asked for, per rank
  std::string workload;
  std::string mode = "eager", cache = "hot";
  std::vector<int> rank_tokens;       // realised
  std::vector<int64_t> expert_pairs;  // realised histogram: pairs per expert
  std::vector<int64_t> rank_rows;     // rows each rank received
  Correctness correctness;
  std::vector<StageRecord> stages;  // in order; "layer" last, if there is one
  int64_t window_bytes = 0;         // symmetric memory per rank
  int64_t weight_bytes = 0;         // largest rank
};

// Peaks that the speed-of-light column used, as measured by doctor on this machine; 0 = not measured. On CPUs they are of
// the machine, on GPUs of one GPU, which a rank has to itself.
struct Peaks {
  double copy_gbs = 0;  // bytes read + written; CPUs: all ranks' threads together
  double read_gbs = 0;
  double exchange_gbs = 0;  // CPUs: shared memory, bytes delivered, all ranks at once
  double bf16_tflops = 0;
  double f32_tflops = 0;
  // GPUs only.
  double fp8_tflops = 0;             // e4m3
  double launch_us = 0;              // an empty kernel, back to back from the host
  double graph_node_us = 0;          // an empty kernel in a graph
  double peer_write_gbs = 0;         // between two GPUs, both directions at once, one direction's: kernels that store,
  double peer_read_gbs = 0;          // kernels that load,
  double copy_engine_gbs = 0;        // and copies that no kernel makes
  double flag_us = 0;                // from a store on one GPU to its being seen on the other
  std::string measured_at;           // stamp
  std::vector<std::string> skipped;  // what was not measured, and why: "exchange: one rank has no neighbour"
};

struct ResultFile {
  int schema = kSchemaVersion;
  std::string stamp;    // 2026-09-30T10-12-33
  std::string command;  // as typed
  std::string model, quant;
  std::vector<std::string> unverified;  // of the model's shape
  int ranks = 0;
  uint64_t seed = 0;
  std::string device = "cpu";
  std::map<std::string, std::string> environment;  // host, cpu, cores, memory, kernel, compiler, libraries, git commit
  Peaks peaks;
  std::vector<Record> records;
  bool complete = false;  // false: interrupted; resumed by the same command
};

nlohmann::ordered_json to_json(const ResultFile& file);
nlohmann::ordered_json to_json(const Peaks& peaks);
// The text that write_result_file stores, byte for byte.
std::string to_text(const ResultFile& file);
// Both throw bad_format naming the file and the field, and accept every schema version up to kSchemaVersion; what they
// return is of kSchemaVersion.
ResultFile result_file_from_json(const nlohmann::json& json, const std::string& file_name);
ResultFile result_file_from_text(std::string_view text, const std::string& file_name);
// io_error if it can't be read, else as above.
ResultFile read_result_file(const std::filesystem::path& path);
// Writes beside the target and renames: readers see the old or the new file, never half of one.
void write_result_file(const ResultFile& file, const std::filesystem::path& path);
// runs/results_<stamp>/<model>__q<quant>.json
std::filesystem::path result_path(const std::filesystem::path& runs, const ResultFile& file);

}  // namespace mixlane::bench
