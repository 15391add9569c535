#include "core/env.hpp"
#include "core/format.hpp"
#include "core/tuning.hpp"
#include "io/data_folder.hpp"
#include "io/tuned.hpp"
#include "tune/options.hpp"

namespace mixlane::bench {
namespace {

std::string table_text(const TunedTable& table) {
  std::string text =
      fmt::format("  {}: {} on {}, {} entries\n", table.file, table.stage, to_string(table.machine), table.entries.size());
  for (const TuningRun& run : table.runs)
    text +=
        fmt::format("    {}  {}  driver {}  commit {}\n      {}\n", run.date, run.gpu, run.driver, run.commit, run.command);
  return text;
}

}  // namespace

std::string tables_text() {
  const Env env = Env::read();
  const TunedLayers layers = load_tuned_layers(env);
  std::string text;
  for (const auto layer : {TunedLayers::environment, TunedLayers::installed}) {
    const bool own = layer == TunedLayers::environment;
    if (own && env.tuned.empty()) continue;
    text += fmt::format("{}{}\n",
                        own ? "MIXLANE_TUNED=" : "installed: ", own ? env.tuned.string() : data_folder("tuned").string());
    for (const TunedTable& table : layers.tables[layer]) text += table_text(table);
    if (layers.tables[layer].empty()) text += "  no tables\n";
  }
  return text;
}

}  // namespace mixlane::bench
