// Dispatch and combine in the benchmark on GPUs: inputs against plain counting, checks that fail for what is wrong, samples,
// records, and tuning. Ranks are threads; where there are fewer GPUs they share them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <set>

#include "exchange/inputs.hpp"
#include "exchange/nccl.hpp"
#include "exchange/rank_threads.hpp"
#include "exchange/timer.hpp"
#include "io/tuned.hpp"
#include "mixlane/tuning.hpp"
#include "results/collect.hpp"
#include "run/options.hpp"
#include "stage/sweep.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"
#include "support/gpu.hpp"
#include "tune/exchange_sweep.hpp"

namespace mixlane::bench {
namespace {

using mixlane::test::gpu_device;

const int kManyQueues = setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);

Model small_model() {
  Model model;
  model.name = "small";
  model.hidden = 256;
  model.routing.num_experts = 16;
  model.routing.num_topk = 4;
  return model;
}

ExchangeShape shape_of(const Model& model, int tokens, const std::string& workload, int num_ranks,
                       WireFormat wire = WireFormat::bf16) {
  return {model, tokens, parse_workload(workload), num_ranks, wire, CombineWire::bf16, 0, 5};
}

TEST(ExchangeInputs, CountsAreThoseOfPlainLoops) {
  Context cpu({.num_threads = 2});
  const Model model = small_model();
  for (const char* workload : {"balanced", "hot_rank", "ragged"}) {
    SCOPED_TRACE(workload);
    const ExchangeInputs inputs(shape_of(model, 23, workload, 3), {CombineRows::reduced, CombineRows::pairs}, cpu);
    const std::vector<int>& owner = inputs.config().expert_rank;
    int64_t pairs = 0, expert_pairs = 0;
    for (int r = 0; r < 3; ++r) {
      const RankData& data = inputs.rank(r);
      ASSERT_EQ(data.ids.size(), static_cast<size_t>(data.num_tokens * 4));
      pairs += data.num_pairs;
      for (int to = 0; to < 3; ++to) {
        int32_t rows = 0;
        for (int64_t t = 0; t < data.num_tokens; ++t)
          rows += std::any_of(data.ids.begin() + t * 4, data.ids.begin() + t * 4 + 4,
                              [&](int32_t id) { return owner[id] == to; });
        EXPECT_EQ(data.sent_count[to], rows);
        EXPECT_EQ(inputs.rank(to).recv_count[r], rows);
      }
      int64_t received = 0;
      for (const int32_t count : data.recv_count) received += count;
      EXPECT_EQ(data.received.size(), static_cast<size_t>(received * (256 * 2 + 4 * 8)));
      EXPECT_EQ(*std::max_element(data.pair_slots.begin(), data.pair_slots.end()), data.num_pairs - 1);
      EXPECT_EQ(data.output[0].size(), static_cast<size_t>(data.num_tokens * 256));
      EXPECT_EQ(data.output[1].size(), static_cast<size_t>(data.num_tokens * 256));
    }
    for (const int64_t each : inputs.expert_pairs()) expert_pairs += each;
    EXPECT_EQ(pairs, expert_pairs) << "every pair has its expert's row on one rank";
  }
}

class ExchangeBench : public mixlane::test::GpuTest {};

// Every way that the build and the machine have.
std::vector<std::string> ways_here(int num_ranks) {
  std::vector<std::string> ways = exchange_ways();
  const bool nccl = Nccl::missing().empty() && gpu::num_devices() >= num_ranks;
  std::erase_if(ways, [&](const std::string& way) { return (way == kNaiveWay || way == kAllToAllWay) && !nccl; });
  std::erase_if(ways, [&](const std::string& way) { return way == "copy_engine" && gpu::num_devices() < num_ranks; });
  return ways;
}

TEST_F(ExchangeBench, ChecksPassForResultsAndFailForPoison) {
  Context cpu({.num_threads = 2});
  const Model model = small_model();
  for (const int num_ranks : {1, 2, 3}) {
    const ExchangeInputs inputs(shape_of(model, 37, "balanced", num_ranks), {CombineRows::reduced, CombineRows::pairs}, cpu);
    const std::vector<RankOnGpu> gpus = upload(inputs);
    const ExchangeStand stand(num_ranks);
    for (const std::string& name : ways_here(num_ranks))
      for (const CombineRows rows : {CombineRows::reduced, CombineRows::pairs}) {
        SCOPED_TRACE(name + " " + std::to_string(num_ranks));
        const bool takes_pairs = name != kNaiveWay && name != kAllToAllWay && name != "throughput";
        if (!takes_pairs && rows == CombineRows::pairs) continue;
        ExchangeCase exchange_case;
        exchange_case.rows = rows;
        const auto way = make_way(name, {inputs, gpus, exchange_case});
        const auto play = [&](bool poisoned) {
          for_each_rank(num_ranks, [&](int rank) {
            const gpu::DeviceGuard guard(stand.stream(rank).device);
            way->dispatch(rank, stand.stream(rank));
            way->combine(rank, stand.stream(rank));
            gpu::synchronize(stand.stream(rank));
          });
          for_each_rank(num_ranks, [&](int rank) {
            if (poisoned) way->poison(rank, stand.stream(rank));
            gpu::synchronize(stand.stream(rank));
          });
        };
        for (const bool poisoned : {false, true}) {
          play(poisoned);
          for (int rank = 0; rank < num_ranks; ++rank) {
            const double received = way->wrong_received(rank, stand.stream(rank));
            const double output = way->wrong_output(rank, stand.stream(rank));
            EXPECT_EQ(received > 0, poisoned) << received;
            EXPECT_EQ(output > way->output_tolerance(), poisoned) << output;
          }
        }
      }
  }
}

TEST_F(ExchangeBench, RowsOfEveryWireAndInput) {
  Context cpu({.num_threads = 2});
  const Model model = small_model();
  const ExchangeStand stand(2);
  for (const WireFormat wire : {WireFormat::bf16, WireFormat::fp8_1x128, WireFormat::fp8_row, WireFormat::mxfp4})
    for (const int padded_to : {0, 600}) {
      ExchangeShape shape = shape_of(model, 37, "balanced", 2, wire);
      shape.padded_to = padded_to;
      const ExchangeInputs inputs(shape, {CombineRows::reduced}, cpu);
      const std::vector<RankOnGpu> gpus = upload(inputs);
      for (const DispatchInput input : {DispatchInput::bf16, DispatchInput::wire}) {
        SCOPED_TRACE(std::string(name(wire)) + " from " + std::string(name(input)) + " of " + std::to_string(padded_to));
        const auto way = make_way("latency", {inputs, gpus, {.input = input}});
        ExchangeRun run(stand, *way, {});
        const ExchangeRun::Errors errors = run.check();
        EXPECT_EQ(errors.received, 0);
        EXPECT_EQ(errors.output, 0);
      }
    }
}

TEST_F(ExchangeBench, RunsHaveSamplesUnderEveryCondition) {
  Context cpu({.num_threads = 2});
  const Model model = small_model();
  const ExchangeInputs inputs(shape_of(model, 9, "balanced", 2), {CombineRows::reduced}, cpu);
  const std::vector<RankOnGpu> gpus = upload(inputs);
  const ExchangeStand stand(2);
  EXPECT_GT(stand.empty_us(), 0.05);
  EXPECT_LT(stand.empty_us(), 50);
  const auto way = make_way("latency", {inputs, gpus, {}});
  for (const LaunchMode mode : {LaunchMode::eager, LaunchMode::graph})
    for (const CacheState cache : {CacheState::hot, CacheState::cold}) {
      ExchangeRun run(stand, *way, {mode, cache});
      const ExchangeRun::Errors errors = run.check();
      EXPECT_EQ(errors.received, 0);
      EXPECT_EQ(errors.output, 0);
      run.take();
      run.take();
      EXPECT_EQ(run.dispatch_us().size(), static_cast<size_t>(2 * (run.num_rounds() - 1)));
      EXPECT_EQ(run.combine_us().size(), run.dispatch_us().size());
      EXPECT_EQ(run.round_us().size(), cache == CacheState::hot ? 2u : 0u);
      EXPECT_GT(*std::min_element(run.dispatch_us().begin(), run.dispatch_us().end()), 0);
      EXPECT_LT(*std::min_element(run.dispatch_us().begin(), run.dispatch_us().end()), 10'000);
    }
}

TEST_F(ExchangeBench, CopyEnginesNeedAGpuPerRank) {
  Context cpu({.num_threads = 2});
  const Model model = small_model();
  const int num_ranks = gpu::num_devices() + 1;
  if (num_ranks > kMaxExchangeRanks) GTEST_SKIP() << "more GPUs than ranks";
  const ExchangeInputs inputs(shape_of(model, 3, "balanced", num_ranks), {CombineRows::reduced}, cpu);
  const std::vector<RankOnGpu> gpus = upload(inputs);
  mixlane::test::expect_error(ErrorCode::unsupported, {"ranks 0 and", "share a GPU"}, [&] {
    make_way("copy_engine", {inputs, gpus, {}});
  });
}

TEST_F(ExchangeBench, ASweepStoresEveryWay) {
  if (gpu::num_devices() < 2) GTEST_SKIP() << "copy engines need a GPU per rank";
  const mixlane::test::TempFolder folder;
  mixlane::test::write_file(folder / "tiny.json",
                            R"({"name": "tiny", "hidden": 256, "intermediate": 32, "activation": {"kind": "swiglu"},
                                "routing": {"num_experts": 8, "num_topk": 2, "scoring": "softmax"}, "source": "tests"})");
  BenchArguments arguments;
  arguments.model = (folder / "tiny.json").string();
  arguments.out = folder / "runs";
  arguments.device = name(gpu_device().type);
  arguments.tokens = {1, 33};
  arguments.has_tokens = true;
  arguments.ranks = 2;
  arguments.workload = {"balanced", "ragged"};
  arguments.stages = {"dispatch", "combine"};
  arguments.exchange_text.dispatch = {"latency", "copy_engine+latency"};
  arguments.exchange_text.combine_rows = {"reduced", "pairs"};
  arguments.mode = {"eager", "graph"};
  arguments.max_time_s = 0.01;
  arguments.max_samples = 8;
  arguments.peak_time_s = 0;
  arguments.quiet = true;
  ASSERT_EQ(run_stage_sweep(resolve(arguments, {"mixlane", "bench"})), 0);
  const Collection found = collect_results(arguments.out);
  ASSERT_EQ(found.files.size(), 1u);
  ASSERT_EQ(found.files[0].records.size(), 8u);
  for (const Record& record : found.files[0].records) {
    ASSERT_EQ(record.rank_tokens.size(), 2u);
    const bool ragged = record.workload == "ragged";  // one rank has none
    EXPECT_EQ(record.rank_tokens[0] + record.rank_tokens[1], ragged ? record.tokens : 2 * record.tokens);
    std::set<std::string> seen;
    for (const StageRecord& stage : record.stages) {
      seen.insert(stage.stage + " " + stage.variant);
      EXPECT_TRUE(stage.correctness.passed);
      EXPECT_GT(stage.time.median_us, 0);
      // 512 bytes of row, 16 of ids and weights; at most a row per token from the other rank.
      if (stage.stage == "dispatch") {
        EXPECT_EQ(stage.remote_bytes % (512 + 16), 0);
        EXPECT_LE(stage.remote_bytes, record.tokens * (512 + 16));
      }
    }
    for (const char* expected : {"dispatch dispatch.latency", "dispatch dispatch.copy_engine", "combine combine.latency",
                                 "exchange exchange.latency", "exchange exchange.copy_engine+latency"})
      EXPECT_EQ(seen.count(expected), 1u) << expected;
    DispatcherConfig config;
    config.hidden = 256;
    config.num_topk = 2;
    config.num_experts = 8;
    config.max_tokens = record.tokens;
    config.copy_engine = true;
    EXPECT_EQ(record.window_bytes, Dispatcher::window_bytes(config, 2, gpu_device().type));
  }
}

class ExchangeTuning : public ExchangeBench, public testing::WithParamInterface<ExchangeStage> {};
INSTANTIATE_TEST_SUITE_P(Stages, ExchangeTuning, testing::Values(ExchangeStage::dispatch, ExchangeStage::combine),
                         [](const auto& each) { return std::string(name(each.param)); });

TEST_P(ExchangeTuning, ChoosesTheFastestAndItsTableIsFound) {
  const ExchangeStage stage = GetParam();
  Context context({.device = gpu_device()});
  ExchangeSweep sweep;
  sweep.num_ranks = 2;
  sweep.hidden = {64};
  // There is nothing to choose for combines of fewer.
  const bool dispatches = stage == ExchangeStage::dispatch;
  sweep.tokens = dispatches ? std::vector<int64_t>{1, 48} : std::vector<int64_t>{768, 1024};
  const TunedTable table = tune_exchange({stage}, exchange_tuning(context, stage).machine(), sweep,
                                         {"2026-01-01T00:00:00Z", "GPU", "driver", "commit", "command"})
                               .front();
  ASSERT_GE(table.entries.size(), 2u);
  for (const TunedEntry& entry : table.entries) {
    double best = 1e9, chosen = 0;
    for (const auto& [id, us] : entry.measured_us) {
      best = std::min(best, us);
      if (id == entry.choice) chosen = us;
    }
    EXPECT_GT(chosen, 0);
    EXPECT_LE(chosen, best * 1.1);
    if (mixlane::to_string(entry.key[3]) == "window") {
      EXPECT_EQ(entry.choice.find("copy_engine"), std::string::npos);
    }
  }
  const mixlane::test::TempFolder folder;
  mixlane::test::write_file(folder / tuned_file_name(table), tuned_json(table));
  Context fresh({.device = gpu_device()});
  load_tuned(fresh, folder.path().string());
  for (const int64_t tokens : dispatches ? std::vector<int64_t>{1, 40, 48} : std::vector<int64_t>{768, 1000, 1024}) {
    const ExchangeKey key{2, 128, 0, true, tokens};
    const auto entry = std::find_if(table.entries.begin(), table.entries.end(), [&](const TunedEntry& each) {
      return key_text(table, each) == key_text(exchange_tune_space(stage), key.packed());
    });
    ASSERT_NE(entry, table.entries.end());
    EXPECT_EQ(tuned_exchange(fresh, stage, key), entry->choice);
  }
  EXPECT_TRUE(fresh.notices().empty());
  EXPECT_EQ(tuned_exchange(fresh, stage, {2, 256, 0, false, 48}), "");
  ASSERT_EQ(fresh.notices().size(), 1u);
  const std::string command = "mixlane tune --stage " + std::string(name(stage)) + " --ranks 2 --hidden 128";
  EXPECT_NE(fresh.notices()[0].find(command), std::string::npos) << fresh.notices()[0];
}

}  // namespace
}  // namespace mixlane::bench
