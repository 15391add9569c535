// The subcommands of the program. Each adds itself to the application; parsing the command line sets `action`, which the
// program then runs: its result is the exit code.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace mixlane::bench {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;  // something went wrong, or a regression
inline constexpr int kExitUsage = 2;   // the command line asks for what does not exist or contradicts itself
inline constexpr int kExitNotComparable = 3;

using Action = std::function<int()>;

void add_bench(CLI::App& app, Action& action);
void add_report(CLI::App& app, Action& action);
void add_compare(CLI::App& app, Action& action);
void add_doctor(CLI::App& app, Action& action);
void add_models(CLI::App& app, Action& action);
void add_tune(CLI::App& app, Action& action);

}  // namespace mixlane::bench
