// The subcommand `mixlane tune`.
#include "command.hpp"

#include <memory>

#include "core/format.hpp"
#include "tune/options.hpp"

namespace mixlane::bench {
namespace {

constexpr const char* kFooter = R"(Examples:
  mixlane tune --stage align                       every shape of the catalogue, into tuned/; under two minutes
  mixlane tune --stage align --shapes 96x5         a shape of your own beside them
  mixlane tune --stage align --replace             again, after an update of the library or the driver
  mixlane tune --stage dispatch,combine --hidden 7168   on all GPUs, a rank on each
  mixlane tune --stage experts --model deepseek-v3 --ranks 8 --quant none,fp8
  mixlane tune --stage align --regret              how far "auto" is from the best variant
  MIXLANE_TUNED=tuned mixlane bench ...            uses what was tuned; the installed tables need no variable

docs/tuning.md tells the rest.)";

void declare(CLI::App& command, TuneOptions& o) {
  command.add_option("--stage", o.stage, "What to tune: align, experts, dispatch, combine, or dispatch,combine")
      ->check(CLI::IsMember({"align", "experts", "dispatch", "combine", "dispatch,combine"}))
      ->capture_default_str();
  command.add_option("--device", o.device, "Index of the GPU")->check(CLI::Range(0, 1023))->capture_default_str();
  command.add_option("--shapes", o.shapes, "experts x experts per token, as in 256x8; default: those of the catalogue")
      ->delimiter(',');
  command.add_option("--ids", o.ids, "i32, i64, window (rows as dispatch leaves them); default: all")
      ->delimiter(',')
      ->check(CLI::IsMember({"i32", "i64", "window"}));
  command
      .add_option("--ranks", o.ranks, "Ranks that share the experts [align, for windows, and experts: 8; else one per GPU]")
      ->check(CLI::Range(1, 1024));
  command
      .add_option("--hidden", o.hidden,
                  "Values of a row of dispatch and combine; default: those of the catalogue. One, of experts with --shapes")
      ->delimiter(',')
      ->check(CLI::Range(8, 1 << 20));
  command.add_option("--model", o.models, "Of experts: names or files; default: those of the catalogue")->delimiter(',');
  command.add_option("--quant", o.quants, "Of experts: none, fp8, fp8_channel, mxfp4, mxfp4_fp8")
      ->delimiter(',')
      ->capture_default_str();
  command.add_option("--intermediate", o.intermediate, "Of experts with --shapes")->check(CLI::Range(16, 1 << 20));
  command
      .add_option(
          "--tokens", o.tokens,
          "Of a call, of dispatch and combine on each rank; the next size that is tuned. Default: every size, of dispatch "
          "and combine to 8192, of experts to 32768")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20));
  command.add_option("--multiprocessors", o.multiprocessors, "How many a dispatch or combine may keep busy; 0 = all")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command.add_option("--block", o.block, "Rows per block of the calls")->check(CLI::Range(1, 1024))->capture_default_str();
  command.add_option("--margin", o.margin, "How much faster a variant must be to displace a simpler one")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command.add_option("--out", o.out, "Folder, or .json file, that gets the choices")->capture_default_str();
  command.add_flag("--replace", o.replace, "Let new choices displace different ones in the file");
  command.add_flag("--regret", o.regret,
                   "Measure what is tuned instead of tuning: auto against every variant of align or experts");
  command.add_option("--json", o.json, "With --regret: write every point to this file; - is standard output");
  command.add_flag("--list", o.list, "Print the tuned tables there are");
  command.footer(kFooter);
}

}  // namespace

std::string TuneOptions::command() const {
  const TuneOptions usual;
  std::string text = fmt::format("mixlane tune --stage {}", stage);
  const auto add = [&](const char* option, const auto& value, const auto& usual_value) {
    if (value != usual_value) text += fmt::format(" {} {}", option, value);
  };
  if (!shapes.empty()) text += fmt::format(" --shapes {}", fmt::join(shapes, ","));
  if (!ids.empty()) text += fmt::format(" --ids {}", fmt::join(ids, ","));
  add("--ranks", ranks, usual.ranks);
  if (!hidden.empty()) text += fmt::format(" --hidden {}", fmt::join(hidden, ","));
  if (!models.empty()) text += fmt::format(" --model {}", fmt::join(models, ","));
  if (quants != usual.quants) text += fmt::format(" --quant {}", fmt::join(quants, ","));
  add("--intermediate", intermediate, usual.intermediate);
  if (!tokens.empty()) text += fmt::format(" --tokens {}", fmt::join(tokens, ","));
  add("--multiprocessors", multiprocessors, usual.multiprocessors);
  add("--block", block, usual.block);
  add("--margin", margin, usual.margin);
  if (regret) text += " --regret";
  return text;
}

void add_tune(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("tune", "Measure which variant of a stage is the fastest here, by shape");
  const auto options = std::make_shared<TuneOptions>();
  declare(*command, *options);
  command->callback([options, &action] {
    action = [options] {
      if (!options->list) return tune_stage(*options);
      fmt::print("{}", tables_text());
      return kExitOk;
    };
  });
}

}  // namespace mixlane::bench
