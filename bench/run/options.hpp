// What `mixlane bench` was asked to do: the command line, checked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "exchange/options.hpp"
#include "measure/device_timer.hpp"
#include "measure/sampler.hpp"
#include "mixlane/layer.hpp"
#include "mixlane/model.hpp"
#include "stage/options.hpp"
#include "workload/workload.hpp"

namespace CLI {
class App;
}

namespace mixlane::bench {

// As typed.
struct BenchArguments {
  std::string model = "qwen3-30b-a3b";
  std::vector<std::string> quant{"none"};
  std::vector<int> tokens{1, 16, 64, 256};
  std::vector<std::string> workload{"balanced"};
  std::optional<int> ranks;
  std::filesystem::path out = "runs";
  uint64_t seed = 1;
  int threads = 0;
  std::optional<double> deadline_s;
  bool mask = false;
  int capacity = 0;
  std::string wire = "auto";
  std::string combine_wire = "bf16";
  std::vector<std::string> variants;
  std::optional<double> min_time_s, max_time_s;  // default_times() without
  int max_samples = SamplePlan{}.max_samples;
  double target = SamplePlan{}.target;
  double peak_time_s = 1.2;
  std::vector<std::string> mode;  // empty: eager on the CPU, graph on a GPU
  std::vector<std::string> cache{"hot"};
  std::vector<std::string> stages;  // GPU: all without
  StageOptionTexts stage_options_text;
  ExchangeOptionTexts exchange_text;
  std::optional<int> experts, topk;  // instead of the model's
  std::filesystem::path checkpoint;
  int checkpoint_layer = 0;
  std::filesystem::path hidden, logits;
  std::string device = "cpu";
  std::string json;
  bool fresh = false;
  bool quiet = false;
  bool no_trace = false;
  bool list_variants = false;
  bool kernel_times = false;
  bool has_workload = false;  // --workload was given
  bool has_tokens = false;    // --tokens was given
};

// Declares the options on `command`, bound to `arguments`, each with its default and meaning.
void declare(CLI::App& command, BenchArguments& arguments);

// The arguments with their meaning resolved.
struct BenchOptions : BenchArguments {
  Model shape;
  std::vector<QuantFormat> formats;
  std::vector<Workload> workloads;  // empty: recorded activations
  Device chosen_device;             // index of --device included
  std::vector<LaunchMode> modes;
  std::vector<CacheState> caches;
  StageOptions stage_options;
  ExchangeOptions exchange;
  std::map<std::string, std::vector<std::string>> variant_lists;  // GPU: stage -> ids, "auto" among them
  int num_ranks = 0;
  int threads_per_rank = 1;
  std::chrono::milliseconds deadline{};
  std::map<std::string, std::string> variant_of;  // CPU: stage -> id
  std::string command;                            // the command line without --fresh: what a resumed run must repeat
  bool on_gpu() const { return chosen_device.type != DeviceType::cpu; }
  bool recorded() const { return workloads.empty(); }
  int max_tokens() const;
  std::vector<std::string> workload_names() const;  // "recorded" if they are
  SamplePlan sample_plan() const;
};

// Throws invalid_argument, naming the valid values, for whatever does not exist or contradicts itself or the launcher.
BenchOptions resolve(const BenchArguments& arguments, const std::vector<std::string>& command_line);

// The dispatch wire of one arithmetic: what --wire says, or the one that carries just what the experts take. Throws
// invalid_argument if experts follow that can't take it.
WireFormat wire_format(const BenchOptions& options, QuantFormat format);
CombineWire combine_wire(const BenchOptions& options);

}  // namespace mixlane::bench
