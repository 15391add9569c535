// The subcommands of the program. Each adds itself to the application; parsing the command line sets `action`, which the
// program then runs: its result is the exit code.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace mixlane::bench {

using Action = std::function<int()>;

void add_report(CLI::App& app, Action& action);
void add_compare(CLI::App& app, Action& action);
void add_doctor(CLI::App& app, Action& action);
void add_models(CLI::App& app, Action& action);

}  // namespace mixlane::bench
