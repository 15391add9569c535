// Result files for the tests of everything that reads them.
#pragma once

#include <random>

#include "results/record.hpp"
#include "support/random.hpp"

namespace mixlane::bench::test {

// n samples scattered around `centre` by a factor of about 1 +- noise.
inline std::vector<double> noisy_samples(mixlane::test::Rng& rng, int n, double centre, double noise) {
  std::normal_distribution<double> normal(0, noise);
  std::vector<double> samples(static_cast<size_t>(n));
  for (double& sample : samples) sample = centre * std::exp(normal(rng));
  return samples;
}

inline StageRecord sample_stage(const std::string& stage, const std::string& variant, std::vector<double> samples) {
  StageRecord record;
  record.stage = stage;
  record.variant = variant;
  record.time = {100.5, 90.25, 120.75, 88, 131, 40, 0.008, true};
  record.wait_us = 12.5;
  record.rank_median_us = {95.5, 100.5};
  record.samples_us = std::move(samples);
  record.bytes = int64_t{1} << 40;
  record.flops = 123456789012345;
  record.logical_bytes = 4096;
  record.remote_bytes = 2048;
  record.sol_us = 50.25;
  record.sol_share = 0.5;
  record.bound = "memory";
  return record;
}

// As a stage bench stores it: one variant, checked and timed on its own.
inline StageRecord sample_stage_alone(const std::string& stage, const std::string& variant, const std::string& options,
                                      double us) {
  StageRecord record;
  record.stage = stage;
  record.variant = variant;
  record.options = options;
  record.automatic = true;
  record.calls_per_sample = 32;
  record.correctness = {true, 16, 0, 0, stage + ".cpu"};
  record.kernels = {{variant, us - 0.25}, {"", 0.125}};
  record.time = {us, us, us, us, us, 20, 0.004, true};
  record.samples_us.assign(20, us);
  record.bytes = 4000;
  record.sol_us = us / 4;
  record.sol_share = 0.25;
  record.bound = "memory";
  return record;
}

inline Record sample_record(int tokens, const std::string& workload) {
  Record record;
  record.tokens = tokens;
  record.workload = workload;
  record.rank_tokens = {tokens, tokens};
  record.expert_pairs = {6, 1, 1, 0};
  record.rank_rows = {7, 3};
  record.correctness = {true, 2 * tokens, 0.0021, 0.01, "layer reference (f32)"};
  record.stages = {sample_stage("dispatch", "dispatch.cpu", {40, 41, 42}), sample_stage("layer", "", {100, 101, 99.5})};
  record.window_bytes = 1 << 20;
  record.weight_bytes = 1 << 22;
  return record;
}

inline ResultFile sample_file() {
  ResultFile file;
  file.stamp = "2026-09-30T10-12-33";
  file.command = "mixlane bench --model toy";
  file.model = "toy";
  file.quant = "none";
  file.ranks = 2;
  file.seed = 18446744073709551615u;
  file.environment = {{"host", "box"}, {"cpu", "Some CPU"}, {"commit", "abc1234"}};
  file.peaks = {.copy_gbs = 20.5,
                .read_gbs = 15.25,
                .exchange_gbs = 8,
                .bf16_tflops = 3.5,
                .f32_tflops = 1.75,
                .fp8_tflops = 1400.5,
                .launch_us = 2.9,
                .graph_node_us = 0.54,
                .peer_write_gbs = 367,
                .peer_read_gbs = 338,
                .copy_engine_gbs = 392,
                .flag_us = 0.69,
                .measured_at = "2026-09-30T10-12-00",
                .skipped = {"bf16_tflops: oneDNN is not installed"}};
  file.records = {sample_record(16, "balanced"), sample_record(16, "zipf:1.2")};
  file.complete = true;
  return file;
}

}  // namespace mixlane::bench::test
