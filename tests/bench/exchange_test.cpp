// Dispatch and combine in the benchmark, as far as no GPU is needed: options and the table.
#include <gtest/gtest.h>

#include "exchange/options.hpp"
#include "exchange/table.hpp"
#include "sample_results.hpp"
#include "support/errors.hpp"

namespace mixlane::bench {
namespace {

using mixlane::test::expect_error;

TEST(ExchangeOptions, Defaults) {
  const ExchangeOptions options = parse_exchange_options({});
  EXPECT_EQ(options.ways, std::vector<std::string>{"auto"});
  EXPECT_EQ(options.rows, std::vector<CombineRows>{CombineRows::reduced});
  EXPECT_EQ(options.multiprocessors, std::vector<int>{0});
  EXPECT_EQ(options.inputs, std::vector<DispatchInput>{DispatchInput::bf16});
  EXPECT_FALSE(options.overlap);
  EXPECT_FALSE(ExchangeOptionTexts{}.any());
}

TEST(ExchangeOptions, ListsKeepTheirOrder) {
  const ExchangeOptions options = parse_exchange_options({.dispatch = {"nccl_a2a", "auto", "naive"},
                                                          .combine_rows = {"pairs", "reduced"},
                                                          .input = {"wire", "bf16"},
                                                          .multiprocessors = {16, 0},
                                                          .overlap = true});
  EXPECT_EQ(options.ways, (std::vector<std::string>{"nccl_a2a", "auto", "naive"}));
  EXPECT_EQ(options.rows, (std::vector<CombineRows>{CombineRows::pairs, CombineRows::reduced}));
  EXPECT_EQ(options.inputs, (std::vector<DispatchInput>{DispatchInput::wire, DispatchInput::bf16}));
  EXPECT_EQ(options.multiprocessors, (std::vector<int>{16, 0}));
  EXPECT_TRUE(options.overlap);
  EXPECT_EQ(
      parse_exchange_options({.dispatch = {"auto+auto"}, .combine_rows = {}, .input = {}, .multiprocessors = {}}).ways[0],
      "auto+auto");
}

TEST(ExchangeOptions, UnknownValuesAreNamedWithTheValidOnes) {
  const auto parse = [](ExchangeOptionTexts texts) { return [texts] { parse_exchange_options(texts); }; };
  expect_error(ErrorCode::invalid_argument, {"--dispatch 'quick'", "auto", "naive", "nccl_a2a"},
               parse({.dispatch = {"quick"}, .combine_rows = {}, .input = {}, .multiprocessors = {}}));
  expect_error(ErrorCode::invalid_argument, {"--combine-rows 'all'", "reduced, pairs"},
               parse({.dispatch = {}, .combine_rows = {"all"}, .input = {}, .multiprocessors = {}}));
  expect_error(ErrorCode::invalid_argument, {"--input 'fp8'", "bf16, wire"},
               parse({.dispatch = {}, .combine_rows = {}, .input = {"fp8"}, .multiprocessors = {}}));
  expect_error(ErrorCode::invalid_argument, {"--multiprocessors is -1"},
               parse({.dispatch = {}, .combine_rows = {}, .input = {}, .multiprocessors = {-1}}));
}

TEST(ExchangeOptions, StagesOfAnExchange) {
  EXPECT_TRUE(has_exchange({"align", "combine"}));
  EXPECT_TRUE(has_exchange({"dispatch"}));
  EXPECT_FALSE(has_exchange({"routing", "align"}));
}

StageRecord exchange_row(const std::string& stage, const std::string& variant, double us) {
  StageRecord row = test::sample_stage_alone(stage, variant, "wire=bf16", us);
  row.remote_bytes = 50'000'000;
  row.logical_bytes = 100'000'000;
  return row;
}

TEST(ExchangeTable, RatesAndRatiosOfTheLastCondition) {
  ResultFile file;
  file.model = "sample";
  file.quant = "none";
  file.ranks = 2;
  file.device = "cuda";
  Record graph = test::sample_record(4096, "balanced"), cold = graph;
  graph.mode = cold.mode = "graph";
  cold.cache = "cold";
  graph.window_bytes = 6'000'000;
  graph.stages = {exchange_row("dispatch", "dispatch.latency", 100), exchange_row("dispatch", "dispatch.naive", 150)};
  cold.stages = {exchange_row("dispatch", "dispatch.latency", 200), exchange_row("dispatch", "dispatch.naive", 500)};
  const std::string text = exchange_table(file, {graph, cold});
  for (const char* expected : {"ranks=2", "symmetric memory 6.00 MB per rank", "graph hot", "graph cold", "50.00"})
    EXPECT_NE(text.find(expected), std::string::npos) << expected << " in\n" << text;
  const auto line_of = [&](const std::string& what) {
    const size_t at = text.find(what);
    return text.substr(at, text.find('\n', at) - at);
  };
  // 50 MB in 200 us are 250 GB/s; with the own rows 500.
  EXPECT_NE(line_of("dispatch.latency").find(" 250 "), std::string::npos) << text;
  EXPECT_NE(line_of("dispatch.latency").find(" 500 "), std::string::npos) << text;
  EXPECT_NE(line_of("dispatch.latency").find("1.00"), std::string::npos) << text;
  EXPECT_NE(line_of("dispatch.naive").find(" 100 "), std::string::npos) << text;
  EXPECT_NE(line_of("dispatch.naive").find("2.50"), std::string::npos) << text;
}

TEST(ExchangeTable, NothingWithoutSuchStages) {
  Record record = test::sample_record(4, "balanced");
  record.stages = {test::sample_stage_alone("align", "align.cluster", "", 3)};
  EXPECT_EQ(exchange_table({}, {record}), "");
  EXPECT_EQ(exchange_table({}, {}), "");
}

}  // namespace
}  // namespace mixlane::bench
