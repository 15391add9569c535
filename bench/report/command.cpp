#include "command.hpp"

#include "core/error.hpp"
#include "core/format.hpp"
#include "report/report.hpp"
#include "results/collect.hpp"
#include "results/files.hpp"

namespace mixlane::bench {

std::filesystem::path write_report(const std::filesystem::path& runs, const std::filesystem::path& out) {
  const Collection found = collect_results(runs);
  for (const std::string& warning : found.warnings) fmt::print(stderr, "mixlane: {}\n", warning);
  if (found.files.empty())
    fail(ErrorCode::io_error, "no result below {0}; mixlane bench --out {0} makes some", runs.string());
  const Report report = make_report(found.files, found.warnings);
  write_text_file(out / "summary.csv", report.csv);
  if (!report.stages_csv.empty()) write_text_file(out / "stages.csv", report.stages_csv);
  write_text_file(out / "REPORT.md", report.markdown);
  return out / "REPORT.md";
}

std::filesystem::path write_report(const std::filesystem::path& runs) {
  // A trailing slash would make the folder its own parent.
  const std::filesystem::path folder = runs.has_filename() ? runs : runs.parent_path();
  return write_report(runs, folder.parent_path() / "report");
}

void add_report(CLI::App& app, Action& action) {
  struct Options {
    std::string runs = "runs", out = "report";
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("report", "Every result below a folder on one page, older ones included");
  command->add_option("runs", options->runs, "Folder of runs, or one result file")->capture_default_str();
  command->add_option("-o,--out", options->out, "Folder that receives REPORT.md and summary.csv")->capture_default_str();
  command->footer("Files that can't be read are skipped with a warning. Exit code 1 if none can. Columns: docs/report.md.");
  command->callback([options, &action] {
    action = [options] {
      fmt::print("wrote {} and summary.csv beside it\n", write_report(options->runs, options->out).string());
      return kExitOk;
    };
  });
}

}  // namespace mixlane::bench
