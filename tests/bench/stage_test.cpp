// Stages alone, as far as no GPU is needed: inputs, options, checks, attribution, tables, reports and comparisons.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "compare/compare.hpp"
#include "core/numeric.hpp"
#include "report/report.hpp"
#include "run/variants.hpp"
#include "sample_results.hpp"
#include "stage/inputs.hpp"
#include "stage/kernel_times.hpp"
#include "stage/options.hpp"
#include "stage/routing_check.hpp"
#include "stage/table.hpp"
#include "support/errors.hpp"

namespace mixlane::bench {
namespace {

using mixlane::test::expect_error;
using test::sample_file;
using test::sample_stage_alone;
using Strings = std::vector<std::string>;

// ---------------------------------------------------------------------------------------------------------------------
// Inputs

Model plain_model(int num_experts, int num_topk) {
  Model model;
  model.name = "plain";
  model.hidden = 40;
  model.routing.num_experts = num_experts;
  model.routing.num_topk = num_topk;
  return model;
}

StageCell cell_of(const Model& model, int tokens, const std::string& workload, int num_ranks = 1) {
  return {model, QuantFormat::none, tokens, parse_workload(workload), num_ranks, 7};
}

TEST(StageInputs, RoutingTakesTheWorkloadsExperts) {
  Context cpu({.num_threads = 2});
  for (const char* workload : {"balanced", "zipf:1.2", "hot_expert", "hot_rank"}) {
    SCOPED_TRACE(workload);
    Model model = plain_model(24, 3);
    model.routing.num_zero_experts = 2;
    constexpr int kTokens = 97;
    StageInputs inputs(cell_of(model, kTokens, workload, 8), cpu);
    std::vector<int32_t> ids(kTokens * 3);
    std::vector<float> weights(kTokens * 3), zero_weights(kTokens);
    route(cpu, {.config = model.routing,
                .logits = {inputs.logits().data(), DType::f32, {kTokens, 26}},
                .topk_ids = {ids.data(), DType::i32, {kTokens, 3}},
                .topk_weights = {weights.data(), DType::f32, {kTokens, 3}},
                .zero_weights = {zero_weights.data(), DType::f32, {kTokens}}});
    EXPECT_TRUE(std::equal(ids.begin(), ids.end(), inputs.topk_ids().begin(), inputs.topk_ids().end()));
    const std::vector<int64_t> pairs = inputs.expert_pairs();
    EXPECT_EQ(std::accumulate(pairs.begin(), pairs.end(), int64_t{0}),
              std::count_if(ids.begin(), ids.end(), [](int32_t id) { return id >= 0; }));
    if (std::string(workload) == "hot_rank") {
      EXPECT_EQ(std::count_if(pairs.begin(), pairs.end(), [](int64_t n) { return n > 0; }), 3);
    }
    if (std::string(workload) == "hot_expert") {
      EXPECT_EQ(*std::max_element(pairs.begin(), pairs.end()), kTokens);
    }
  }
}

TEST(StageInputs, LogitsAndHiddenRowsAreStandardNormal) {
  Context cpu({.num_threads = 2});
  const Model model = plain_model(128, 8);
  StageInputs inputs(cell_of(model, 500, "balanced"), cpu);
  const auto expect_normal = [](const std::vector<double>& values) {
    const double n = static_cast<double>(values.size());
    const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
    double variance = 0;
    for (const double v : values) variance += (v - mean) * (v - mean) / n;
    EXPECT_NEAR(mean, 0, 5 / std::sqrt(n));
    EXPECT_NEAR(variance, 1, 10 / std::sqrt(n));
    const auto inside = std::count_if(values.begin(), values.end(), [](double v) { return std::abs(v) < 1; });
    EXPECT_NEAR(static_cast<double>(inside) / n, 0.6827, 0.02);
  };
  expect_normal({inputs.logits().begin(), inputs.logits().end()});
  std::vector<double> hidden;
  for (const uint16_t value : inputs.hidden()) hidden.push_back(bf16_to_f32(value));
  EXPECT_EQ(hidden.size(), 500u * 40);
  expect_normal(hidden);
  EXPECT_TRUE(inputs.correction_bias().empty());
}

TEST(StageInputs, OneExpertAndManyTokens) {
  Context cpu({.num_threads = 2});
  const Model model = plain_model(16, 4);
  StageInputs one(cell_of(model, 50, "one_expert"), cpu);
  for (const int32_t id : one.topk_ids()) EXPECT_EQ(id, one.topk_ids()[0]);
  const std::span<const float> row = one.logits().first(16);
  EXPECT_EQ(std::max_element(row.begin(), row.end()) - row.begin(), one.topk_ids()[0]);

  constexpr int kTokens = StageInputs::kDistinctTokens + 3;
  StageInputs many(cell_of(model, kTokens, "balanced"), cpu);
  const auto ids = many.topk_ids();
  ASSERT_EQ(ids.size(), size_t{kTokens} * 4);
  EXPECT_TRUE(std::equal(ids.end() - 12, ids.end(), ids.begin()));
  const std::vector<int64_t> pairs = many.expert_pairs();
  EXPECT_LE(*std::max_element(pairs.begin(), pairs.end()) - *std::min_element(pairs.begin(), pairs.end()), 4);

  Model wide = plain_model(16, 4);
  wide.hidden = 1 << 20;
  StageInputs large(cell_of(wide, 1 << 14, "balanced"), cpu);
  expect_error(ErrorCode::unsupported, {"hidden rows of 16384 tokens take 32.0 GiB", "4 GiB"}, [&] { large.hidden(); });
}

// ---------------------------------------------------------------------------------------------------------------------
// Options

TEST(StageOptions, AreParsedOrRefusedWithTheValidOnes) {
  StageOptions options = parse_stage_options({});
  EXPECT_EQ(options.align_blocks, std::vector<int>{128});
  EXPECT_EQ(options.id_types, std::vector<DType>{DType::i32});
  EXPECT_TRUE(options.quant_groups.empty());
  EXPECT_EQ(options.quant_types, std::vector<DType>{DType::bf16});
  EXPECT_EQ(options.quant_scales_by_column, std::vector<bool>{false});
  EXPECT_EQ(options.experts_outputs, std::vector<ExpertsOutput>{ExpertsOutput::pairs});
  options = parse_stage_options({.align_block = {64, 128},
                                 .id_type = {"i64", "i32"},
                                 .logits_type = {"bf16"},
                                 .quant_group = {"row", "1x32", "128x128", "1x128"},
                                 .quant_type = {"f32", "f16"},
                                 .quant_scales = {"columns", "rows"},
                                 .experts_output = {"tokens", "pairs"},
                                 .batch_invariant = {"on"}});
  EXPECT_EQ(options.experts_outputs, (std::vector<ExpertsOutput>{ExpertsOutput::tokens, ExpertsOutput::pairs}));
  EXPECT_EQ(options.batch_invariant, std::vector<bool>{true});
  EXPECT_EQ(options.align_blocks, (std::vector<int>{64, 128}));
  EXPECT_EQ(options.id_types, (std::vector<DType>{DType::i64, DType::i32}));
  EXPECT_EQ(options.logits_types, std::vector<DType>{DType::bf16});
  EXPECT_EQ(options.quant_types, (std::vector<DType>{DType::f32, DType::f16}));
  EXPECT_EQ(options.quant_scales_by_column, (std::vector<bool>{true, false}));
  EXPECT_EQ(options.quant_groups, (std::vector<ScaleGroup>{ScaleGroup::row, ScaleGroup::group_1x32,
                                                           ScaleGroup::block_128x128, ScaleGroup::group_1x128}));
  for (const ScaleGroup group : options.quant_groups)
    EXPECT_EQ(parse_stage_options({.quant_group = {std::string(short_name(group))}}).quant_groups[0], group);
  const auto refused = [](const StageOptionTexts& texts, const Strings& mentions) {
    EXPECT_TRUE(texts.any());
    expect_error(ErrorCode::invalid_argument, mentions, [&] { parse_stage_options(texts); });
  };
  refused({.align_block = {0}}, {"--align-block is 0", "1..1024"});
  refused({.id_type = {"i16"}}, {"--id-type 'i16'", "i32, i64"});
  refused({.logits_type = {"fp8"}}, {"--logits-type 'fp8'", "f32, bf16, f16"});
  refused({.quant_group = {"1x64"}}, {"--quant-group '1x64'", "1x128, row, 128x128, 1x32"});
  refused({.quant_type = {"fp8"}}, {"--quant-type 'fp8'", "bf16, f16, f32"});
  refused({.quant_scales = {"transposed"}}, {"--quant-scales 'transposed'", "rows, columns"});
  refused({.experts_output = {"slots"}}, {"--experts-output 'slots'", "pairs, tokens"});
  refused({.batch_invariant = {"yes"}}, {"--batch-invariant 'yes'", "off, on"});
}

TEST(StageOptions, SeveralVariantsOfAStage) {
  const std::vector<StageVariants> stages = {
      {"align", {{"align.cpu", "", DeviceType::cpu}, {"align.a", "", DeviceType::cuda}, {"align.b", "", DeviceType::cuda}}},
      {"quant", {{"quant.x", "", DeviceType::cuda}}}};
  const auto parsed = [&](const Strings& settings) { return parse_variant_lists(settings, stages, DeviceType::cuda); };
  EXPECT_TRUE(parsed({}).empty());
  EXPECT_EQ(parsed({"align=all"}).at("align"), (Strings{"align.a", "align.b"}));
  EXPECT_EQ(parsed({"align=align.b,auto,align.b"}).at("align"), (Strings{"align.b", "auto"}));
  EXPECT_EQ(parsed({"align=align.b", "quant=all", "align=all"}).at("align"), (Strings{"align.b", "align.a"}));
  const auto refused = [&](const std::string& setting, const Strings& mentions) {
    expect_error(ErrorCode::invalid_argument, mentions, [&] { parsed({setting}); });
  };
  refused("align", {"'align'", "stage=all", "align, quant"});
  refused("experts=all", {"'experts=all'", "align, quant"});
  refused("align=align.cpu", {"align has no 'align.cpu' on cuda", "auto, all, align.a, align.b"});
  refused("align=", {"align has no ''"});
  refused("align=align.a,,align.b", {"align has no ''"});
}

// ---------------------------------------------------------------------------------------------------------------------
// Checks

TEST(RoutingCheck, EqualIdsAndCloseWeights) {
  const RoutingAnswer expected{{0, 1, 1, 2}, {0.9f, 0.7f, 0.8f, 0.7f}};
  const auto compare = [&](const std::vector<int64_t>& ids, const std::vector<float>& weights) {
    return compare_routing(expected, {ids, weights});
  };
  const RoutingDifference same = compare(expected.ids, expected.weights);
  EXPECT_EQ(same.num_wrong_ids, 0);
  EXPECT_EQ(same.weight_error, 0);
  EXPECT_NEAR(compare({0, 1, 1, 2}, {0.9f, 0.7f, 0.88f, 0.7f}).weight_error, 0.1, 1e-6);
  EXPECT_TRUE(std::isinf(compare({0, 1, 1, 2}, {0.9f, std::nanf(""), 0.8f, 0.7f}).weight_error));
  EXPECT_EQ(compare({0, 3, 1, 2}, expected.weights).num_wrong_ids, 1);
  EXPECT_EQ(compare({0, 1, 2, 1}, expected.weights).num_wrong_ids, 2) << "in another order";
}

TEST(KernelTimes, AreSummedPerVariantAndCall) {
  const auto span = [](const char* symbol, int64_t begin, int64_t ns) {
    KernelSpan result;
    result.symbol = symbol;
    result.begin_ns = begin;
    result.end_ns = begin + ns;
    return result;
  };
  KernelProfile profile;
  profile.spans = {span("void someone::copy_rows(int)", 0, 500),
                   span("void mixlane::align_gpu::align_none<1>(X)", 1000, 3000),
                   span("void mixlane::quant_gpu::quant_groups<1>(X)", 5000, 1000),
                   span("void mixlane::align_gpu::align_none<1>(X)", 9000, 5000)};
  const Strings known{"align.none", "quant.groups"};
  const std::vector<KernelTime> times = attribute_kernels(profile, known, 2);
  ASSERT_EQ(times.size(), 3u);
  EXPECT_EQ(times[0].variant, "align.none");
  EXPECT_DOUBLE_EQ(times[0].us, 4.0);
  EXPECT_EQ(times[1].variant, "quant.groups");
  EXPECT_DOUBLE_EQ(times[1].us, 0.5);
  EXPECT_EQ(times[2].variant, "");
  EXPECT_DOUBLE_EQ(times[2].us, 0.25);
  EXPECT_TRUE(attribute_kernels({}, known, 2).empty());
}

// ---------------------------------------------------------------------------------------------------------------------
// What is shown

// A GPU's file with one cell, in graphs, hot and cold.
ResultFile gpu_file(double cluster_us) {
  ResultFile file = sample_file();
  file.device = "cuda";
  file.environment["gpu"] = "NVIDIA H200";
  file.ranks = 1;
  file.records.resize(2);
  for (Record& record : file.records) {
    record = {};
    record.tokens = 64;
    record.workload = "balanced";
    record.mode = "graph";
    record.correctness = {true, 64, 0, 0, "the CPU's variants"};
    record.stages = {sample_stage_alone("align", "align.none", "block=64", 4),
                     sample_stage_alone("align", "align.cluster", "block=64", cluster_us),
                     sample_stage_alone("quant", "quant.groups", "group=1x128", 2)};
    record.stages[1].automatic = false;
  }
  file.records[1].cache = "cold";
  file.records[1].stages[1].time.converged = false;
  return file;
}

void expect_text(const std::string& text, const Strings& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << "'" << part << "' missing in\n" << text;
}

TEST(StageTable, HasARowPerVariantAndAColumnPerCondition) {
  ResultFile file = gpu_file(3);
  file.records[1].stages.pop_back();
  const std::string text = stages_alone_table(file, {file.records[1], file.records[0]});
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 4);
  file = gpu_file(3);
  const std::string both = stages_alone_table(file, file.records);
  expect_text(both, {"toy tokens=64 balanced quant=none cuda", "correct against the CPU", "graph hot", "graph cold",
                     "align.none *", "3.00!", "quant.groups *", "group=1x128"});
  EXPECT_EQ(both.find("align.cluster *"), std::string::npos);
  EXPECT_EQ(stages_alone_table(file, {}), "");
}

TEST(StageReport, PutsVariantsBesideEachOther) {
  const Report report = make_report({gpu_file(3)}, {});
  expect_text(report.markdown, {"### Stages alone", "align block=64, balanced, cuda, graph, hot:", "align.none us", "4.00*",
                                "3.00 !", "align.cluster 2.75, not attributed 0.12", "quant group=1x128"});
  EXPECT_EQ(report.markdown.find("no time of the layer"), std::string::npos);
  expect_text(report.markdown, {"not converged: toy none tokens=64 balanced graph cold align block=64 align.cluster"});
  EXPECT_EQ(std::count(report.csv.begin(), report.csv.end(), '\n'), 1) << "no layer, no row";
  EXPECT_EQ(std::count(report.stages_csv.begin(), report.stages_csv.end(), '\n'), 7);
  expect_text(report.stages_csv, {"toy,none,64,balanced,align,block=64,align.cluster,false,cuda,graph,cold,3,",
                                  "align.none=3.75;not attributed=0.125"});
  EXPECT_TRUE(make_report({sample_file()}, {}).stages_csv.empty());
}

TEST(StageCompare, MatchesVariantsAndConditions) {
  auto result = compare_results({gpu_file(3)}, {gpu_file(3.3)}, 0.02);
  ASSERT_EQ(result.rows.size(), 6u);
  EXPECT_EQ(result.rows[0].stage, "align block=64 align.none");
  EXPECT_EQ(result.rows[0].cell.cache, "cold");
  EXPECT_EQ(result.rows[3].cell.cache, "hot");
  for (const size_t row : {0, 2, 3, 5}) EXPECT_EQ(result.rows[row].comparison.verdict, Verdict::same) << row;
  for (const size_t row : {1, 4}) EXPECT_EQ(result.rows[row].comparison.verdict, Verdict::slow) << row;
  expect_text(to_text(result), {"graph cold", "graph hot", "align block=64 align.cluster"});
  // One variant a side: another one took its place.
  ResultFile a = gpu_file(3), b = gpu_file(3);
  for (ResultFile* file : {&a, &b}) file->records.pop_back();
  a.records[0].stages.erase(a.records[0].stages.begin() + 1);
  b.records[0].stages.erase(b.records[0].stages.begin());
  result = compare_results({a}, {b}, 0.02);
  ASSERT_EQ(result.rows.size(), 2u);
  EXPECT_EQ(result.rows[0].stage, "align block=64");
  EXPECT_EQ(result.rows[0].comparison.verdict, Verdict::fast);
  // Several on one side: only the same one counts.
  result = compare_results({gpu_file(3)}, {b}, 0.02);
  EXPECT_EQ(result.count(Verdict::not_comparable), 2) << "align.none, and the cold cell";
  b.environment["gpu"] = "NVIDIA H100";
  expect_text(to_text(compare_results({a}, {b}, 0.02)), {"processor differs (NVIDIA H200 and NVIDIA H100)"});
}

}  // namespace
}  // namespace mixlane::bench
