// The subcommand `mixlane bench`: starts the ranks if nobody else did, and is one of them if somebody did.
#include "command.hpp"

#include <memory>

#include "core/env.hpp"
#include "core/error.hpp"
#include "core/format.hpp"
#include "launch/local_ranks.hpp"
#include "launch/rank_errors.hpp"
#include "mixlane/comm.hpp"
#include "run/options.hpp"
#include "run/session.hpp"
#include "run/sweep.hpp"
#include "run/together.hpp"
#include "run/variants.hpp"
#include "stage/sweep.hpp"

namespace mixlane::bench {
namespace {

std::vector<std::string> own_command_line() {
  std::vector<std::string> words;
  std::string word;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen("/proc/self/cmdline", "r"), std::fclose);
  if (!file) fail(ErrorCode::io_error, "can't read /proc/self/cmdline; is /proc mounted?");
  for (int c; (c = std::fgetc(file.get())) != EOF;) {
    if (c != 0) {
      word += static_cast<char>(c);
      continue;
    }
    words.push_back(std::move(word));
    word.clear();
  }
  return words;
}

// A rank of a group. `prefix` goes before its messages unless whoever started it does that.
int run_rank(const BenchOptions& options, const std::string& prefix) {
  try {
    return run_sweep(options);
  } catch (const PeerFailed&) {
    return kExitFailed;
  } catch (const std::exception& error) {
    return print_error(error, prefix);
  }
}

int run(const BenchArguments& arguments) {
  if (arguments.list_variants) {
    fmt::print("{}", variants_text());
    return kExitOk;
  }
  const std::vector<std::string> command_line = own_command_line();
  const BenchOptions options = resolve(arguments, command_line);
  if (options.on_gpu()) return run_stage_sweep(options);
  const LaunchInfo launch = launch_info();
  if (launch.source == "none" && options.num_ranks > 1) {
    require_writable(options.out);
    return run_local_ranks({.num_ranks = options.num_ranks,
                            .arguments = command_line,
                            .if_interrupted = "the same command goes on where this one stopped",
                            .survivors_go_on = options.mask,
                            .deadline = options.deadline});
  }
  const bool names_itself = launch.rank > 0 && launch.source != "mixlane";
  return run_rank(options, names_itself ? fmt::format("[rank {}] ", launch.rank) : "");
}

}  // namespace

void add_bench(CLI::App& app, Action& action) {
  CLI::App* command =
      app.add_subcommand("bench", "Time every stage of a MoE layer: a layer on all ranks (CPU), or stages alone (GPU)");
  const auto arguments = std::make_shared<BenchArguments>();
  declare(*command, *arguments);
  command->callback([arguments, &action] { action = [arguments] { return run(*arguments); }; });
}

}  // namespace mixlane::bench
