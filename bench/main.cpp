// The program `mixlane`: parses the command line, runs one subcommand, turns errors into one line and an exit code.

#include <cstdio>

#include "command.hpp"
#include "core/format.hpp"
#include "launch/rank_errors.hpp"
#include "mixlane/version.hpp"

namespace {

constexpr const char* kDescription = "Expert-parallel Mixture-of-Experts layers, measured stage by stage.";
constexpr const char* kFooter = R"(Examples:
  mixlane bench                                         a first look: Qwen3-30B-A3B on four local ranks
  mixlane bench --model deepseek-v3 --quant fp8 --tokens 1,16,64 --workload balanced,zipf:1.2
  mpirun -n 4 mixlane bench --tokens 64                 ranks started by someone else: torchrun and srun work too
  mixlane report runs                                   one page of everything measured so far
  mixlane compare before/runs after/runs                did it get slower? exit code 1 says yes
  mixlane doctor                                        what this machine has and can do
  mixlane models                                        the shape catalogue
  mixlane tune --stage align                            the fastest variant for each shape on this GPU

Exit codes: 0 fine, 1 failed or slower, 2 wrong usage, 3 not comparable.)";

}  // namespace

int main(int argc, char** argv) {
  using namespace mixlane::bench;
  CLI::App app(kDescription, "mixlane");
  app.footer(kFooter);
  app.set_version_flag("--version", "mixlane " MIXLANE_VERSION);
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);

  Action action;
  add_bench(app, action);
  add_report(app, action);
  add_compare(app, action);
  add_doctor(app, action);
  add_models(app, action);
  add_tune(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  try {
    return action();
  } catch (const std::exception& error) {
    return print_error(error, "");
  }
}
