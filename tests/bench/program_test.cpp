// `mixlane bench` from end to end: what it writes, what it refuses.
#include "program.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/format.hpp"
#include "io/npy.hpp"
#include "io/safetensors.hpp"
#include "results/files.hpp"
#include "results/record.hpp"
#include "support/random.hpp"

namespace mixlane::bench::test {
namespace {

using Strings = std::vector<std::string>;

class ProgramTest : public BenchTest {
 protected:
  void expect_usage_error(const Strings& arguments, const Strings& mentions) {
    Program program(command(arguments));
    program.wait();
    EXPECT_EQ(program.exit_code, 2) << program.err;
    expect_mentions(program.err, mentions);
    EXPECT_FALSE(std::filesystem::exists(runs()));
  }
};

void check_stages(const Record& record, int num_ranks) {
  Strings names;
  for (const StageRecord& stage : record.stages) {
    names.push_back(stage.stage);
    EXPECT_GE(stage.time.n, 10) << stage.stage;
    EXPECT_EQ(stage.samples_us.size(), static_cast<size_t>(stage.time.n)) << stage.stage;
    EXPECT_EQ(stage.rank_median_us.size(), static_cast<size_t>(num_ranks)) << stage.stage;
    EXPECT_GT(stage.time.median_us, 0) << stage.stage;
    EXPECT_GE(stage.time.p90_us, stage.time.p10_us);
    EXPECT_LE(stage.time.median_us, record.stages.back().time.max_us * (stage.stage == "dispatch+combine" ? 100 : 1));
    EXPECT_GT(stage.bytes, 0) << stage.stage;
  }
  EXPECT_EQ(Strings(names.begin(), names.begin() + 5), (Strings{"routing", "dispatch", "align", "experts", "combine"}));
  EXPECT_EQ(names.back(), "layer");
  EXPECT_EQ(record.stages[0].variant, "routing.cpu");
  EXPECT_EQ(record.stages[1].variant, "dispatch.shm");
  EXPECT_EQ(record.stages[4].variant, "combine.shm");
}

TEST_F(ProgramTest, WritesARecordPerCellWithWhatHappened) {
  Program program(command({"--ranks", "3", "--quant", "none,fp8,fp8_channel,mxfp4,mxfp4_fp8", "--tokens", "1,6",
                           "--workload", "balanced,ragged,hot_expert"}));
  program.wait();
  ASSERT_EQ(program.exit_code, 0) << program.err;
  expect_mentions(program.out, {"nobody has checked these fields of tiny: intermediate", "REPORT.md", "merged.json"});
  ASSERT_EQ(results().size(), 5u);
  for (const auto& path : results()) {
    const ResultFile file = read_result_file(path);
    EXPECT_TRUE(file.complete);
    EXPECT_EQ(file.ranks, 3);
    EXPECT_EQ(file.unverified, Strings{"intermediate"});
    EXPECT_NE(file.command.find("--workload balanced,ragged,hot_expert"), std::string::npos);
    ASSERT_EQ(file.records.size(), 6u);
    for (const Record& record : file.records) {
      EXPECT_TRUE(record.correctness.passed);
      const int tokens = std::accumulate(record.rank_tokens.begin(), record.rank_tokens.end(), 0);
      EXPECT_EQ(tokens, record.workload == "ragged" ? (record.tokens == 6 ? 9 : 2) : 3 * record.tokens);
      EXPECT_EQ(record.correctness.checked_tokens, tokens);
      EXPECT_EQ(std::accumulate(record.expert_pairs.begin(), record.expert_pairs.end(), int64_t{0}), 2 * tokens);
      const int64_t hottest = *std::max_element(record.expert_pairs.begin(), record.expert_pairs.end());
      if (record.workload == "hot_expert") {
        EXPECT_EQ(hottest, tokens);
      }
      const int64_t rows = std::accumulate(record.rank_rows.begin(), record.rank_rows.end(), int64_t{0});
      EXPECT_GE(rows, tokens);
      EXPECT_LE(rows, 2 * tokens);
      EXPECT_GT(record.weight_bytes, 0);
      EXPECT_GT(record.window_bytes, 0);
      check_stages(record, 3);
    }
  }
  EXPECT_TRUE(std::filesystem::exists(folder_ / "report" / "REPORT.md"));
}

TEST_F(ProgramTest, TracesLineUpAtTheGate) {
  Program program(command({"--ranks", "2", "--tokens", "4"}));
  program.wait();
  ASSERT_EQ(program.exit_code, 0) << program.err;
  std::string stamp = results().at(0).parent_path().filename().string().substr(8);
  const auto folder = runs() / ("traces_" + stamp) / "tiny__qnone";
  const auto merged = nlohmann::json::parse(read_text_file(folder / "merged.json"));
  std::map<int, std::vector<double>> gates;
  std::map<std::string, int> slices;
  for (const auto& event : merged.at("traceEvents")) {
    if (event.at("ph") != "X") continue;
    ++slices[event.at("name").get<std::string>()];
    EXPECT_EQ(event.at("args").at("tokens"), 4);
    EXPECT_EQ(event.at("args").at("workload"), "balanced");
    EXPECT_GE(event.at("dur").get<double>(), 0);
    if (event.at("cat") == "layer") gates[event.at("pid")].push_back(event.at("ts"));
  }
  EXPECT_EQ(gates.size(), 2u);
  EXPECT_EQ(gates[0], gates[1]);
  EXPECT_EQ(gates[0].size(), 3u);
  EXPECT_EQ(slices["dispatch.shm"], 6);
  EXPECT_EQ(slices["combine.shm"], 6);
  const auto rank1 = nlohmann::json::parse(read_text_file(folder / "rank1.json"));
  for (const auto& event : rank1.at("traceEvents")) EXPECT_EQ(event.at("pid"), 1);
}

TEST_F(ProgramTest, JsonOnStdoutIsTheSavedFile) {
  Program program(command({"--ranks", "2", "--tokens", "3", "--json", "-", "--no-trace"}));
  program.wait();
  ASSERT_EQ(program.exit_code, 0) << program.err;
  ASSERT_EQ(results().size(), 1u);
  EXPECT_EQ(program.out, read_text_file(results()[0]));
}

TEST_F(ProgramTest, OneRankNeedsNoLaunch) {
  Program program(command({"--ranks", "1", "--tokens", "3", "--quiet"}));
  program.wait();
  ASSERT_EQ(program.exit_code, 0) << program.err;
  EXPECT_EQ(program.out.find("experts"), std::string::npos) << program.out;
  expect_mentions(program.out, {"wrote ", "report "});
}

TEST_F(ProgramTest, ReplaysRecordedActivations) {
  // Token t prefers expert t, then expert 7.
  std::vector<float> logits(5 * 8, -3.0f), hidden(5 * 64);
  for (int t = 0; t < 5; ++t) {
    logits[t * 8 + t] = 2.0f;
    logits[t * 8 + 7] = 1.0f;
    for (int h = 0; h < 64; ++h) hidden[t * 64 + h] = static_cast<float>((t * 7 + h * 3) % 11) - 5.0f;
  }
  const std::string logits_file = (folder_ / "logits.npy").string(), hidden_file = (folder_ / "hidden.npy").string();
  save_npy(logits_file, ConstTensorView(logits.data(), DType::f32, {5, 8}));
  save_npy(hidden_file, ConstTensorView(hidden.data(), DType::f32, {5, 64}));
  Program program(command({"--ranks", "2", "--tokens", "3", "--logits", logits_file, "--hidden", hidden_file}));
  program.wait();
  ASSERT_EQ(program.exit_code, 0) << program.err;
  const ResultFile file = read_result_file(results().at(0));
  const Record& record = file.records.at(0);
  EXPECT_EQ(record.workload, "recorded");
  // Rank 0 takes rows 0 1 2, rank 1 rows 3 4 0.
  EXPECT_EQ(record.expert_pairs, (std::vector<int64_t>{2, 1, 1, 1, 1, 0, 0, 6}));

  std::filesystem::remove_all(runs());
  expect_usage_error({"--logits", logits_file, "--workload", "balanced"}, {"--workload", "--logits"});
  Program wrong(command({"--ranks", "2", "--tokens", "3", "--logits", hidden_file}));
  wrong.wait();
  EXPECT_EQ(wrong.exit_code, 2);
  expect_mentions(wrong.err, {hidden_file, "[5, 64]", "[tokens, 8]"});
}

TEST_F(ProgramTest, RunsTheWeightsOfACheckpoint) {
  // A Qwen3-MoE layer of the tiny model's shape, a tensor per matrix as its checkpoints have them.
  mixlane::test::Rng rng(21);
  std::vector<std::vector<uint16_t>> memory;
  std::vector<NamedTensor> tensors;
  const auto add = [&](const std::string& name, int64_t rows, int64_t cols) {
    memory.push_back(mixlane::test::normal_bf16(rng, rows * cols, 0.1f));
    tensors.push_back({"model.layers.2.mlp." + name, ConstTensorView(memory.back().data(), DType::bf16, {rows, cols})});
  };
  add("gate.weight", 8, 64);
  for (int e = 0; e < 8; ++e) {
    add(fmt::format("experts.{}.gate_proj.weight", e), 32, 64);
    add(fmt::format("experts.{}.up_proj.weight", e), 32, 64);
    add(fmt::format("experts.{}.down_proj.weight", e), 64, 32);
  }
  write_safetensors(folder_ / "model.safetensors", tensors);

  const std::vector<std::string> from_checkpoint{"--checkpoint", folder_.string(), "--layer", "2"};
  std::vector<std::string> args{"--ranks", "2", "--tokens", "3", "--quant", "none,fp8"};
  args.insert(args.end(), from_checkpoint.begin(), from_checkpoint.end());
  Program program(command(args));
  program.wait();
  ASSERT_EQ(program.exit_code, 0) << program.err;
  for (const auto& path : results()) {
    const ResultFile file = read_result_file(path);
    EXPECT_TRUE(file.records.at(0).correctness.passed) << path;
    EXPECT_EQ(file.records.at(0).correctness.checked_tokens, 6);
  }
  args.back() = "3";
  Program wrong(command(args));
  wrong.wait();
  EXPECT_NE(wrong.exit_code, 0);
  expect_mentions(wrong.err, {"layer", "3", folder_.string()});
}

TEST_F(ProgramTest, ColdCachesAndOtherWires) {
  Program program(command({"--ranks", "2", "--tokens", "3", "--quant", "fp8_channel", "--cache", "cold", "--wire", "bf16",
                           "--combine-wire", "f64"}));
  program.wait();
  ASSERT_EQ(program.exit_code, 0) << program.err;
  const ResultFile file = read_result_file(results().at(0));
  EXPECT_EQ(file.records.at(0).cache, "cold");
  EXPECT_EQ(file.environment.at("combine_wire"), "f64");
}

TEST_F(ProgramTest, UnknownNamesListTheValidOnes) {
  Program model({MIXLANE_PROGRAM, "bench", "--model", "no-such-model", "--out", runs().string()});
  model.wait();
  EXPECT_EQ(model.exit_code, 2);
  expect_mentions(model.err, {"no-such-model", "qwen3-30b-a3b", "deepseek-v3"});
  expect_usage_error({"--quant", "int3"}, {"int3", "none", "fp8_channel", "mxfp4"});
  expect_usage_error({"--workload", "even"}, {"even", "balanced", "zipf:1.2", "hot_rank"});
  expect_usage_error({"--variant", "router=x"}, {"router", "routing", "combine"});
  expect_usage_error({"--variant", "align=align.gpu"}, {"align.gpu", "auto, align.cpu"});
  expect_usage_error({"--wire", "int8"}, {"int8", "bf16", "fp8_1x128"});
  expect_usage_error({"--wire", "fp8_row"}, {"--wire fp8_row", "quant none"});
  expect_usage_error({"--combine-wire", "fp8"}, {"fp8", "f64"});
  expect_usage_error({"--device", "tpu"}, {"tpu", "cpu, cuda, hip"});
  expect_usage_error({"--device", "cuda:one"}, {"cuda:one", "cuda:1"});
  expect_usage_error({"--mode", "graph"}, {"on the cpu", "eager"});
  expect_usage_error({"--mode", "slow"}, {"slow", "eager, graph"});
  expect_usage_error({"--cache", "hot,cold"}, {"on the cpu", "hot, cold"});
  expect_usage_error({"--stages", "align"}, {"--stages", "--device cuda"});
  expect_usage_error({"--align-block", "64"}, {"--align-block", "--device cuda"});
  expect_usage_error({"--align-block", "64,128,64"}, {"--align-block has 64 twice"});
  expect_usage_error({"--quant-group", "row,row"}, {"--quant-group has row twice"});
  expect_usage_error({"--quant-type", "f32,f32"}, {"--quant-type has f32 twice"});
  expect_usage_error({"--quant-scales", "rows,rows"}, {"--quant-scales has rows twice"});
  expect_usage_error({"--workload", "one_expert"}, {"one_expert", "stages alone"});
  expect_usage_error({"--topk", "9"}, {"num_topk is 9", "1..8"});
  expect_usage_error({"--cache", "warm"}, {"warm", "hot", "cold"});
  expect_usage_error({"--tokens", "0"}, {"--tokens"});
  expect_usage_error({"--tokens", "4,4"}, {"--tokens has 4 twice"});
  expect_usage_error({"--ranks", "65"}, {"--ranks"});
  expect_usage_error({"--no-such-option"}, {"--no-such-option"});
  expect_usage_error({"--hidden", "x.npy"}, {"--logits"});
}

// Where there is a GPU of the build's kind these would run on it.
TEST_F(ProgramTest, WithoutAGpuOneLineSaysWhatIsMissing) {
  for (const std::string device : {"cuda", "hip"}) {
    Program program(command({"--device", device, "--stages", "align", "--tokens", "4", "--quiet"}));
    program.wait();
    if (program.exit_code == 0) continue;
    EXPECT_EQ(program.exit_code, 1);
    EXPECT_EQ(program.out, "");
    EXPECT_EQ(std::count(program.err.begin(), program.err.end(), '\n'), 1) << program.err;
    expect_mentions(program.err, {"--device " + device, "--device cpu"});
    const bool says_what = program.err.find("no NVIDIA GPU: ") != std::string::npos ||
                           program.err.find("no AMD GPU: ") != std::string::npos ||
                           program.err.find("this build is for ") != std::string::npos ||
                           program.err.find("this build has no GPU backend") != std::string::npos;
    EXPECT_TRUE(says_what) << program.err;
    EXPECT_FALSE(std::filesystem::exists(runs())) << "nothing is written";
  }
  Program program(command({"--device", "cpu", "--ranks", "2", "--tokens", "4", "--experts", "4"}));
  program.wait();
  ASSERT_EQ(program.exit_code, 0) << program.err;
  const ResultFile file = read_result_file(results().at(0));
  EXPECT_EQ(file.device, "cpu");
  EXPECT_EQ(file.model, "tiny-E4");
  EXPECT_EQ(file.records.at(0).expert_pairs.size(), 4u);
  EXPECT_TRUE(file.records.at(0).correctness.passed);
}

TEST_F(ProgramTest, HelpAndVariants) {
  Program help({MIXLANE_PROGRAM, "bench", "--help"});
  help.wait();
  EXPECT_EQ(help.exit_code, 0);
  expect_mentions(help.out, {"--workload", "--mask", "--combine-wire", "Examples:", "perfetto"});
  Program variants({MIXLANE_PROGRAM, "bench", "--list-variants"});
  variants.wait();
  EXPECT_EQ(variants.exit_code, 0);
  expect_mentions(variants.out,
                  {"routing.cpu", "dispatch.shm", "quant.cpu", "align.cpu", "experts.reference", "combine.shm"});
  Program nothing({MIXLANE_PROGRAM});
  nothing.wait();
  EXPECT_EQ(nothing.exit_code, 2);
}

TEST_F(ProgramTest, OnlyVariantsOfThisBuildAreListed) {
  Program bench({MIXLANE_PROGRAM, "bench", "--model", MIXLANE_TINY_MODEL, "--device", "cuda", "--out", runs().string()});
  bench.wait();
  if (bench.err.find("this build has no GPU backend") == std::string::npos) GTEST_SKIP() << "a build with a GPU backend";
  Program variants({MIXLANE_PROGRAM, "bench", "--list-variants"});
  variants.wait();
  EXPECT_EQ(variants.out.find(" cuda "), std::string::npos) << variants.out;
  EXPECT_EQ(variants.out.find(" hip "), std::string::npos) << variants.out;
}

// No backend, another vendor's, no driver or no device: each says what to do instead.
TEST_F(ProgramTest, WithoutAGpuTheCpuIsOffered) {
  for (const std::string device : {"cuda", "hip"}) {
    Program bench({MIXLANE_PROGRAM, "bench", "--model", MIXLANE_TINY_MODEL, "--device", device, "--stages", "align",
                   "--tokens", "1", "--out", runs().string()});
    bench.wait();
    if (bench.exit_code == 0) continue;  // there is one
    EXPECT_EQ(bench.exit_code, 1);
    expect_mentions(bench.err, {"--device " + device + ":", "--device cpu"});
    EXPECT_EQ(bench.out, "");
  }
}

TEST_F(ProgramTest, AnUnwritableFolderIsRefusedBeforeAnyWork) {
  Program program({MIXLANE_PROGRAM, "bench", "--model", MIXLANE_TINY_MODEL, "--out", "/dev/null/runs"});
  program.wait();
  EXPECT_EQ(program.exit_code, 1);
  expect_mentions(program.err, {"/dev/null/runs", "--out"});
  EXPECT_EQ(program.out, "");
}

}  // namespace
}  // namespace mixlane::bench::test
