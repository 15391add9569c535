// `mixlane tune --stage align`: which shapes, and what becomes of the choices.

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "command.hpp"
#include "core/env.hpp"
#include "core/error.hpp"
#include "core/format.hpp"
#include "measure/clock.hpp"
#include "mixlane/model.hpp"
#include "results/files.hpp"
#include "tune/align_regret.hpp"
#include "tune/align_sweep.hpp"
#include "tune/exchange_sweep.hpp"
#include "tune/experts_sweep.hpp"
#include "tune/options.hpp"
#include "tune/outcome.hpp"

namespace mixlane::bench {
namespace {

struct ModelShape {
  int experts = 0, topk = 0;
  friend auto operator<=>(const ModelShape&, const ModelShape&) = default;
};

int number_in(const std::string& text, const std::string& whole, int high) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1 || value > high)
    fail(ErrorCode::invalid_argument, "--shapes '{}': write experts x experts per token, as in 256x8", whole);
  return value;
}

std::vector<ModelShape> model_shapes(const TuneOptions& options) {
  std::vector<ModelShape> shapes;
  for (const std::string& text : options.shapes) {
    const size_t cross = text.find('x');
    shapes.push_back({number_in(text.substr(0, cross), text, 65535),
                      number_in(cross == std::string::npos ? "" : text.substr(cross + 1), text, 1024)});
  }
  if (options.shapes.empty())
    for (const Model& model : load_catalogue(Env::read()))
      if (model.routing.num_experts > 0 && model.routing.num_topk > 0)
        shapes.push_back({model.routing.num_experts, model.routing.num_topk});
  std::sort(shapes.begin(), shapes.end());
  shapes.erase(std::unique(shapes.begin(), shapes.end()), shapes.end());
  return shapes;
}

// The keys' shapes: all experts with dense ids, and a rank's part of them in a window.
std::vector<AlignShapeKey> key_shapes(const TuneOptions& options) {
  const auto words = align_tune_space().fields[2].words;
  std::vector<AlignShapeKey> keys;
  for (size_t i = 0; i < words.size(); ++i) {
    const bool wanted =
        options.ids.empty() || std::find(options.ids.begin(), options.ids.end(), words[i]) != options.ids.end();
    if (!wanted) continue;
    for (const ModelShape& shape : model_shapes(options)) {
      const auto ids = static_cast<AlignIds>(i);
      if (ids == AlignIds::window && shape.experts % options.ranks_of_window() != 0) continue;
      const AlignShapeKey key{ids == AlignIds::window ? shape.experts / options.ranks_of_window() : shape.experts,
                              shape.topk, ids};
      if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(key);
    }
  }
  if (keys.empty())
    fail(ErrorCode::invalid_argument, "nothing to tune: no shape's experts divide by {} ranks; see --ranks",
         options.ranks_of_window());
  return keys;
}

nlohmann::ordered_json to_json(const RegretPoint& point) {
  nlohmann::ordered_json json{{"experts", point.shape.experts},
                              {"topk", point.shape.topk},
                              {"ids", align_tune_space().fields[2].words[static_cast<size_t>(point.shape.ids)]},
                              {"spread", name(point.skew)},
                              {"block", point.block},
                              {"tokens", point.tokens}};
  add_json(point, json);
  return json;
}

// Sizes between the buckets' borders as well as on them.
std::vector<int64_t> regret_tokens() {
  std::vector<int64_t> tokens{1};
  for (int64_t next = 2, last = 1; next < 150'000;) {
    tokens.push_back(next);
    last = std::exchange(next, next + last);
  }
  return tokens;
}

int measure(Context& context, const TuneOptions& options) {
  const int64_t begin = now_ns();
  RegretSweep sweep;
  sweep.shapes = key_shapes(options);
  sweep.layouts = {{AlignSkew::uniform, 16}, {AlignSkew::uniform, 128}, {AlignSkew::zipf, 64}, {AlignSkew::one_expert, 64}};
  sweep.tokens = options.tokens.empty() ? regret_tokens() : options.tokens;
  sweep.race.margin = options.margin;
  const std::vector<RegretPoint> points = align_regret(context, sweep, {}, say);
  for (const std::string& notice : context.notices()) say("note: " + notice);
  if (!options.json.empty()) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const RegretPoint& point : points) list.push_back(to_json(point));
    write_output(options.json, list.dump(1) + "\n");
  }
  if (options.json != "-") fmt::print("{}", regret_text(points));
  say(fmt::format("{} points in {:.0f} s", points.size(), static_cast<double>(now_ns() - begin) * 1e-9));
  return kExitOk;
}

}  // namespace

int tune_stage(const TuneOptions& options) {
  std::string why;
  if (gpu::num_devices(&why) == 0) fail(ErrorCode::unsupported, "tuning {} needs a GPU: {}", options.stage, why);
  Context context({.device = {gpu::kDeviceType, options.device}});
  if (options.stage == "experts") return tune_experts_stage(context, options);
  if (options.stage != "align") return tune_exchange_stage(context, options);
  if (options.regret) return measure(context, options);
  const int64_t begin = now_ns();
  AlignSweep sweep;
  sweep.shapes = key_shapes(options);
  sweep.tokens = options.tokens;
  sweep.block = options.block;
  sweep.race.margin = options.margin;
  const TunedTable fresh = tune_align(context, sweep, describe_run(options), {}, say);
  say(fmt::format("{} keys in {:.0f} s", fresh.entries.size(), static_cast<double>(now_ns() - begin) * 1e-9));
  store(options, align_tune_space(), fresh);
  return kExitOk;
}

}  // namespace mixlane::bench
