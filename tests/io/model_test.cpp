// One model file: every field, every kind of mistake.
#include "mixlane/model.hpp"

#include <cmath>
#include <nlohmann/json.hpp>

#include "support/errors.hpp"
#include "support/files.hpp"

namespace mixlane {
namespace {

using test::expect_error;
using Json = nlohmann::json;

Json minimal() {
  return Json::parse(R"({"name": "tiny", "hidden": 64, "intermediate": 32,
                         "routing": {"num_experts": 8, "num_topk": 2, "scoring": "softmax"},
                         "activation": {"kind": "swiglu"}})");
}

Model parse(const Json& json) { return parse_model(json.dump(), "tiny.json"); }

TEST(Model, DefaultsAreThoseOfTheHeader) {
  const Model model = parse(minimal());
  EXPECT_EQ(model.name, "tiny");
  EXPECT_EQ(model.title, "tiny");
  EXPECT_EQ(model.file, "tiny.json");
  EXPECT_EQ(model.hidden, 64);
  EXPECT_EQ(model.intermediate, 32);
  EXPECT_EQ(model.routing.num_experts, 8);
  EXPECT_EQ(model.routing.num_topk, 2);
  EXPECT_EQ(model.routing.scoring, Scoring::softmax);
  EXPECT_FALSE(model.routing.renormalize);
  EXPECT_EQ(model.routing.scale, 1.0f);
  EXPECT_EQ(model.routing.num_groups, 1);
  EXPECT_EQ(model.activation.kind, ActivationKind::swiglu);
  EXPECT_TRUE(std::isinf(model.activation.limit));
  EXPECT_EQ(model.shared_intermediate, 0);
  EXPECT_TRUE(model.missing.empty());
}

TEST(Model, ReadsEveryField) {
  const Model model = parse_model(R"({
    "name": "all", "title": "All of it", "aliases": ["some", "more"], "hidden": 128, "intermediate": 96,
    "routing": {"num_experts": 24, "num_topk": 5, "scoring": "sqrt_softplus", "renormalize": true,
                "renorm_epsilon": 0.25, "scale": 2.5, "num_groups": 6, "topk_groups": 3, "group_score": "max",
                "softcap": 30, "weight_on_input": true},
    "correction_bias": true, "router_bias": true, "hash_layers": 3,
    "activation": {"kind": "swiglu_oai", "limit": 7, "alpha": 1.5}, "expert_bias": true,
    "num_shared_experts": 2, "shared_intermediate": 192, "shared_gate": true,
    "source": "here", "unverified": ["hidden", "routing.scale", "activation.limit"]})",
                                  "all.json");
  EXPECT_EQ(model.title, "All of it");
  EXPECT_EQ(model.aliases, (std::vector<std::string>{"some", "more"}));
  EXPECT_EQ(model.routing.scoring, Scoring::sqrt_softplus);
  EXPECT_TRUE(model.routing.renormalize);
  EXPECT_EQ(model.routing.renorm_epsilon, 0.25f);
  EXPECT_EQ(model.routing.scale, 2.5f);
  EXPECT_EQ(model.routing.num_groups, 6);
  EXPECT_EQ(model.routing.topk_groups, 3);
  EXPECT_EQ(model.routing.group_score, GroupScore::max);
  EXPECT_EQ(model.routing.softcap, 30.0f);
  EXPECT_TRUE(model.routing.weight_on_input);
  EXPECT_TRUE(model.correction_bias);
  EXPECT_TRUE(model.router_bias);
  EXPECT_EQ(model.hash_layers, 3);
  EXPECT_EQ(model.activation.kind, ActivationKind::swiglu_oai);
  EXPECT_EQ(model.activation.limit, 7.0f);
  EXPECT_EQ(model.activation.alpha, 1.5f);
  EXPECT_TRUE(model.expert_bias);
  EXPECT_EQ(model.num_shared_experts, 2);
  EXPECT_EQ(model.shared_intermediate, 192);
  EXPECT_TRUE(model.shared_gate);
  EXPECT_EQ(model.source, "here");
  EXPECT_EQ(model.unverified, (std::vector<std::string>{"hidden", "routing.scale", "activation.limit"}));
}

// A path into the document, the value put there, and what the message must name.
struct Mistake {
  std::string path;
  std::string value;
  std::vector<std::string> mentions;
};

TEST(Model, RefusesWrongValues) {
  const std::vector<Mistake> mistakes = {
      {"/hidden", "0", {"tiny.json", "hidden is 0", "from 1 to 1048576"}},
      {"/hidden", "\"64\"", {"hidden is \"64\"", "whole number"}},
      {"/hidden", "64.5", {"hidden is 64.5", "whole number"}},
      {"/hidden", "18446744073709551615", {"hidden is 18446744073709551615"}},
      {"/hidden", "-9223372036854775808", {"hidden is -9223372036854775808"}},
      {"/hidden", "1e400", {"not valid JSON"}},
      {"/name", "\"\"", {"name is \"\""}},
      {"/name", "\"Tiny Model\"", {"Tiny Model", "a-z"}},
      {"/aliases", "[1]", {"aliases is [1]", "list of texts"}},
      {"/aliases", "[\"a/b\"]", {"aliases", "a-z"}},
      {"/routing", "[]", {"routing is []", "object"}},
      {"/routing/num_experts", "1025", {"routing.num_experts is 1025", "from 1 to 1024"}},
      {"/routing/num_topk", "33", {"routing.num_topk is 33", "from 1 to 32"}},
      {"/routing/num_topk", "9", {"routing.num_topk is 9", "at most 8"}},
      {"/routing/scoring", "\"softmx\"", {"routing.scoring is \"softmx\"", "softmax, topk_softmax, sigmoid, sqrt_softplus"}},
      {"/routing/scoring", "3", {"routing.scoring is 3", "softmax"}},
      {"/routing/renormalize", "1", {"routing.renormalize is 1", "true or false"}},
      {"/routing/scale", "0", {"routing.scale is 0", "above 0"}},
      {"/routing/scale", "\"x\"", {"routing.scale is \"x\"", "a number"}},
      {"/routing/softcap", "-1", {"routing.softcap is -1", "from 0"}},
      {"/routing/num_groups", "3", {"routing.num_groups is 3", "divisor of num_experts (8)"}},
      {"/routing/topk_groups", "2", {"routing.topk_groups is 2", "num_groups (1)"}},
      {"/routing/group_score", "\"sum\"", {"routing.group_score is \"sum\"", "max, top2_sum"}},
      {"/routing/num_groups", "8", {"routing.num_topk", "at most 1"}},
      {"/routing/experts", "8", {"unknown field 'routing.experts'", "num_experts", "num_topk"}},
      {"/activation", "\"swiglu\"", {"activation is \"swiglu\"", "object"}},
      {"/activation/kind", "\"silu\"", {"activation.kind is \"silu\"", "swiglu, swiglu_oai, geglu_tanh, relu2"}},
      {"/activation/kind", "\"relu2\"", {}},  // fine on its own
      {"/activation/limit", "0", {"activation.limit is 0"}},
      {"/activation/alpha", "2", {"activation.alpha is 2", "swiglu_oai"}},
      {"/activation/limits", "2", {"unknown field 'activation.limits'"}},
      {"/num_shared_experts", "1", {"shared_intermediate is missing"}},
      {"/shared_intermediate", "64", {"shared_intermediate is 64", "num_shared_experts"}},
      {"/shared_gate", "true", {"shared_gate is true", "num_shared_experts"}},
      {"/hiden", "64", {"unknown field 'hiden'", "hidden"}},
      {"/unverified", "[\"topk\"]", {"unverified", "'topk' is none"}},
      {"/unverified", "[\"routing\"]", {"unverified", "'routing' is none"}},
      {"/source", "null", {"source is null"}},
  };
  for (const Mistake& mistake : mistakes) {
    SCOPED_TRACE(mistake.path + " = " + mistake.value);
    Json json = minimal();
    json[Json::json_pointer(mistake.path)] = "VALUE";
    std::string text = json.dump();
    text.replace(text.find("\"VALUE\""), 7, mistake.value);
    if (mistake.mentions.empty()) {
      EXPECT_NO_THROW(parse_model(text, "tiny.json"));
    } else {
      expect_error(ErrorCode::bad_format, mistake.mentions, [&] { parse_model(text, "tiny.json"); });
    }
  }
}

TEST(Model, RefusesMissingFields) {
  for (const std::string path : {"/name", "/hidden", "/intermediate", "/routing", "/activation", "/routing/num_experts",
                                 "/routing/num_topk", "/routing/scoring", "/activation/kind"}) {
    SCOPED_TRACE(path);
    Json json = minimal();
    const Json::json_pointer pointer(path);
    json.at(pointer.parent_pointer()).erase(pointer.back());
    expect_error(ErrorCode::bad_format, {"tiny.json", pointer.back() + " is missing"}, [&] { parse(json); });
  }
}

TEST(Model, RefusesBrokenJson) {
  const std::string good = minimal().dump();
  for (size_t length = 0; length < good.size(); ++length)
    expect_error(ErrorCode::bad_format, {"cut.json"}, [&] { parse_model(good.substr(0, length), "cut.json"); });
  expect_error(ErrorCode::bad_format, {"twice", "hidden"},
               [&] { parse_model(R"({"hidden": 1, "name": "a", "hidden": 2})", "twice.json"); });
  expect_error(ErrorCode::bad_format, {"deep.json", "levels"}, [&] { parse_model(std::string(100'000, '['), "deep.json"); });
  expect_error(ErrorCode::bad_format, {"list.json", "object"}, [&] { parse_model("[]", "list.json"); });
  expect_error(ErrorCode::bad_format, {"utf8.json"}, [&] { parse_model("{\"name\": \"\xff\"}", "utf8.json"); });
}

TEST(Model, NullIsMissing) {
  Json json = minimal();
  json["intermediate"] = nullptr;
  json["routing"]["scale"] = nullptr;
  json["num_shared_experts"] = nullptr;
  json["shared_intermediate"] = nullptr;
  const Model model = parse(json);
  EXPECT_EQ(model.missing,
            (std::vector<std::string>{"intermediate", "num_shared_experts", "shared_intermediate", "routing.scale"}));
}

TEST(Model, LoadNamesTheFile) {
  test::TempFolder folder;
  expect_error(ErrorCode::io_error, {"absent.json"}, [&] { load_model(folder / "absent.json"); });
  test::write_file(folder / "broken.json", "{");
  expect_error(ErrorCode::bad_format, {"broken.json"}, [&] { load_model(folder / "broken.json"); });
  test::write_file(folder / "huge.json", std::string((1 << 20) + 1, ' '));
  expect_error(ErrorCode::bad_format, {"huge.json", "1048577"}, [&] { load_model(folder / "huge.json"); });
  expect_error(ErrorCode::io_error, {folder.path().string()}, [&] { load_model(folder.path()); });
}

}  // namespace
}  // namespace mixlane
