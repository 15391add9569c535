// The catalogue as shipped, and how a model is found.
#include <algorithm>

#include "core/env.hpp"
#include "io/data_folder.hpp"
#include "mixlane/model.hpp"
#include "support/errors.hpp"
#include "support/files.hpp"

namespace mixlane {
namespace {

using test::expect_error;

// The shapes as published, typed again: name, hidden, intermediate (0 = unknown), experts, topk, shared experts (-1 =
// unknown), scale (0 = unknown), scoring.
struct Row {
  std::string name;
  int hidden, intermediate, num_experts, num_topk, num_shared;
  float scale;
  Scoring scoring;
};

const Row kRows[] = {
    {"mixtral-8x7b", 4096, 14336, 8, 2, 0, 1, Scoring::topk_softmax},
    {"mixtral-8x22b", 6144, 16384, 8, 2, 0, 1, Scoring::topk_softmax},
    {"deepseek-v2", 5120, 1536, 160, 6, 2, 16, Scoring::softmax},
    {"deepseek-v2-lite", 2048, 1408, 64, 6, 2, 1, Scoring::softmax},
    {"deepseek-v3", 7168, 2048, 256, 8, 1, 2.5f, Scoring::sigmoid},
    {"deepseek-v4-flash", 4096, 2048, 256, 6, 1, 1.5f, Scoring::sqrt_softplus},
    {"deepseek-v4-pro", 7168, 3072, 384, 6, 1, 2.5f, Scoring::sqrt_softplus},
    {"deepseek-v4.1-flash", 5120, 2304, 384, 6, 1, 1.5f, Scoring::sqrt_softplus},
    {"kimi-k2", 7168, 2048, 384, 8, 1, 2.827f, Scoring::sigmoid},
    {"kimi-k3", 3584, 3072, 896, 16, -1, 0, Scoring::sigmoid},
    {"qwen3-30b-a3b", 2048, 768, 128, 8, 0, 1, Scoring::softmax},
    {"qwen3-235b-a22b", 4096, 1536, 128, 8, 0, 1, Scoring::softmax},
    {"qwen3-next-80b-a3b", 2048, 512, 512, 10, 1, 1, Scoring::softmax},
    {"qwen3.5-35b-a3b", 2048, 512, 256, 8, 1, 1, Scoring::softmax},
    {"qwen3.5-397b-a17b", 4096, 1024, 512, 10, 1, 1, Scoring::softmax},
    {"qwen3.8-2400b", 8192, 0, 512, 10, -1, 1, Scoring::softmax},
    {"glm-4.5", 5120, 1536, 160, 8, 1, 2.5f, Scoring::sigmoid},
    {"glm-4.5-air", 4096, 1408, 128, 8, 1, 1, Scoring::sigmoid},
    {"glm-4.7-flash", 2048, 1536, 64, 4, 1, 1.8f, Scoring::sigmoid},
    {"glm-5", 6144, 2048, 256, 8, 1, 2.5f, Scoring::sigmoid},
    {"gpt-oss-20b", 2880, 2880, 32, 4, 0, 1, Scoring::topk_softmax},
    {"gpt-oss-120b", 2880, 2880, 128, 4, 0, 1, Scoring::topk_softmax},
    {"minimax-m2", 3072, 1536, 256, 8, 0, 1, Scoring::sigmoid},
    {"minimax-m3", 6144, 3072, 128, 4, 1, 2, Scoring::sigmoid},
    {"llama-4-scout", 5120, 8192, 16, 1, 1, 1, Scoring::sigmoid},
    {"llama-4-maverick", 5120, 8192, 128, 1, 1, 1, Scoring::sigmoid},
    {"grok-1", 6144, 32768, 8, 2, 0, 1, Scoring::softmax},
    {"grok-2", 8192, 16384, 8, 2, 0, 1, Scoring::softmax},
    {"longcat-flash", 6144, 2048, 512, 12, 0, 6, Scoring::softmax},
    {"hunyuan-hy3", 4096, 1536, 192, 8, 1, 2.826f, Scoring::sigmoid},
    {"mimo-v2.5-pro", 6144, 2048, 384, 8, 0, 1, Scoring::sigmoid},
    {"nemotron-3-super", 1024, 0, 512, 22, 1, 0, Scoring::sigmoid},
    {"gemma4-26b-a4b", 2816, 704, 128, 8, 0, 1, Scoring::softmax},
};

bool misses(const Model& model, const std::string& field) {
  return std::find(model.missing.begin(), model.missing.end(), field) != model.missing.end();
}

TEST(Catalogue, HoldsTheKnownModels) {
  const std::vector<Model> models = load_catalogue(Env{});
  EXPECT_EQ(models.size(), std::size(kRows));
  EXPECT_TRUE(std::is_sorted(models.begin(), models.end(), [](const Model& a, const Model& b) { return a.name < b.name; }));
  for (const Row& row : kRows) {
    SCOPED_TRACE(row.name);
    const auto found = std::find_if(models.begin(), models.end(), [&](const Model& m) { return m.name == row.name; });
    ASSERT_NE(found, models.end());
    const Model& model = *found;
    EXPECT_EQ(model.file.filename(), row.name + ".json");
    EXPECT_FALSE(model.source.empty());
    EXPECT_EQ(model.hidden, row.hidden);
    EXPECT_EQ(misses(model, "intermediate"), row.intermediate == 0);
    EXPECT_EQ(model.intermediate, row.intermediate);
    EXPECT_EQ(model.routing.num_experts, row.num_experts);
    EXPECT_EQ(model.routing.num_topk, row.num_topk);
    EXPECT_EQ(misses(model, "num_shared_experts"), row.num_shared == -1);
    EXPECT_EQ(model.num_shared_experts, std::max(row.num_shared, 0));
    EXPECT_EQ(misses(model, "routing.scale"), row.scale == 0);
    if (row.scale != 0) {
      EXPECT_EQ(model.routing.scale, row.scale);
    }
    EXPECT_EQ(model.routing.scoring, row.scoring);
  }
}

TEST(Catalogue, ParticularsOfModels) {
  const Env env;
  const Model v3 = find_model(env, "deepseek-r1");
  EXPECT_EQ(v3.name, "deepseek-v3");
  EXPECT_EQ(v3.routing.num_groups, 8);
  EXPECT_EQ(v3.routing.topk_groups, 4);
  EXPECT_EQ(v3.routing.group_score, GroupScore::top2_sum);
  EXPECT_TRUE(v3.correction_bias);
  EXPECT_TRUE(v3.routing.renormalize);
  EXPECT_EQ(v3.shared_intermediate, 2048);

  const Model v2 = find_model(env, "deepseek-v2");
  EXPECT_EQ(v2.routing.group_score, GroupScore::max);
  EXPECT_EQ(v2.routing.topk_groups, 3);
  EXPECT_FALSE(v2.routing.renormalize);

  const Model v4 = find_model(env, "deepseek-v4-flash");
  EXPECT_EQ(v4.hash_layers, 3);
  EXPECT_EQ(v4.activation.limit, 10.0f);

  const Model oss = find_model(env, "gpt-oss-20b");
  EXPECT_TRUE(oss.router_bias);
  EXPECT_TRUE(oss.expert_bias);
  EXPECT_EQ(oss.activation.kind, ActivationKind::swiglu_oai);
  EXPECT_EQ(oss.activation.limit, 7.0f);
  EXPECT_EQ(oss.activation.alpha, 1.702f);

  const Model next = find_model(env, "qwen3-next-80b-a3b");
  EXPECT_TRUE(next.shared_gate);
  EXPECT_EQ(next.shared_intermediate, 512);

  EXPECT_TRUE(find_model(env, "llama-4-scout").routing.weight_on_input);
  EXPECT_EQ(find_model(env, "grok-1").routing.softcap, 30.0f);
  EXPECT_EQ(find_model(env, "grok-1").activation.kind, ActivationKind::geglu_tanh);
  EXPECT_EQ(find_model(env, "longcat-flash").routing.num_zero_experts, 256);
  EXPECT_EQ(find_model(env, "minimax-m2.5").routing.renorm_epsilon, 1e-20f);
  EXPECT_EQ(find_model(env, "deepseek-v2-lite").unverified, std::vector<std::string>{"*"});
}

TEST(Catalogue, IncompleteModelsAreListedButRefused) {
  const Env env;
  expect_error(ErrorCode::invalid_argument,
               {"kimi-k3", "routing.scale", "num_shared_experts", "shared_intermediate", "copy", "kimi-k3.json"},
               [&] { find_model(env, "kimi-k3"); });
  expect_error(ErrorCode::invalid_argument, {"qwen3.8-2400b", "intermediate"}, [&] { find_model(env, "qwen3.8-2400b"); });
  expect_error(ErrorCode::invalid_argument, {"nemotron-3-super", "intermediate"},
               [&] { find_model(env, "nemotron-3-super"); });
}

TEST(Catalogue, UnknownNameListsTheValidOnes) {
  expect_error(ErrorCode::invalid_argument, {"'qwen3-31b'", "qwen3-30b-a3b", "deepseek-r1", "gpt-oss-120b"},
               [] { find_model(Env{}, "qwen3-31b"); });
  expect_error(ErrorCode::invalid_argument, {"''"}, [] { find_model(Env{}, ""); });
}

std::string tiny(const std::string& name, int hidden, const std::string& more = "") {
  return R"({"name": ")" + name + R"(", "hidden": )" + std::to_string(hidden) +
         R"(, "intermediate": 32, "routing": {"num_experts": 8, "num_topk": 2, "scoring": "softmax"},
             "activation": {"kind": "swiglu"})" +
         more + "}";
}

TEST(Catalogue, OwnFolderComesFirst) {
  test::TempFolder folder;
  test::write_file(folder / "mine.json", tiny("mine", 72, R"(, "aliases": ["deepseek-r1"])"));
  test::write_file(folder / "mixtral-8x7b.json", tiny("mixtral-8x7b", 80));
  test::write_file(folder / "notes.txt", "not a model");
  Env env;
  env.models = folder.path();
  EXPECT_EQ(catalogue_folders(env).front(), folder.path());
  EXPECT_EQ(find_model(env, "mine").hidden, 72);
  EXPECT_EQ(find_model(env, "mixtral-8x7b").hidden, 80);
  EXPECT_EQ(find_model(env, "mixtral-8x22b").hidden, 6144);
  EXPECT_EQ(load_catalogue(env).size(), std::size(kRows) + 1);

  // A file needs no catalogue.
  EXPECT_EQ(find_model(Env{}, (folder / "mine.json").string()).hidden, 72);
  expect_error(ErrorCode::io_error, {"gone.json"}, [&] { find_model(Env{}, (folder / "gone.json").string()); });

  test::write_file(folder / "other.json", tiny("mine", 88));
  expect_error(ErrorCode::bad_format, {"'mine'", "mine.json", "other.json"}, [&] { load_catalogue(env); });
}

// A program copied to another machine without its catalogue, with MIXLANE_MODELS set as the error says.
TEST(Catalogue, OwnFolderServesWhereNoneWasShipped) {
  test::TempFolder folder;
  using Folders = std::vector<std::filesystem::path>;
  EXPECT_EQ(search_folders(folder.path(), folder / "gone"), Folders{folder.path()});
  EXPECT_EQ(search_folders(folder.path(), folder.path()), (Folders{folder.path(), folder.path()}));
  EXPECT_EQ(search_folders("", folder / "gone"), Folders{folder / "gone"});
}

TEST(Catalogue, MissingOwnFolderIsNamed) {
  Env env;
  env.models = "/nonexistent/models";
  expect_error(ErrorCode::io_error, {"/nonexistent/models", "MIXLANE_MODELS"}, [&] { load_catalogue(env); });
}

}  // namespace
}  // namespace mixlane
