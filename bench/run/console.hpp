// What the user sees while a sweep runs, and the log that keeps it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

namespace mixlane::bench {

// "1m10s", "8s"
std::string duration_text(double seconds);

struct ConsoleOptions {
  bool speaks = false;          // rank 0; the others print and log nothing
  bool quiet = false;           // results' places and warnings only
  bool text_on_stderr = false;  // stdout is for JSON
};

class Console {
 public:
  explicit Console(const ConsoleOptions& options);
  ~Console();
  Console(const Console&) = delete;
  Console& operator=(const Console&) = delete;

  // Appends to the log from now on. Throws io_error naming the path.
  void log_to(const std::filesystem::path& path);

  void say(std::string_view text);     // to the user, unless quiet, and the log
  void report(std::string_view text);  // even if quiet
  void warn(std::string_view text);    // on stderr, with "warning: "
  void note(std::string_view text);    // to the log alone

  // A sweep of `total` cells of which `done` need no work any more.
  void begin_cells(int done, int total);
  void begin_cell(std::string_view what);
  // Redraws the bar on a terminal, at most ten times per second.
  void cell_state(std::string_view what);
  void end_cell();

 private:
  void print(std::string_view text, bool to_stderr);
  void log(std::string_view text);
  void draw(std::string_view what);
  void erase();
  std::string eta() const;

  ConsoleOptions options_;
  bool terminal_ = false;
  bool drawn_ = false;
  std::ofstream log_;
  std::string cell_;
  int done_ = 0, total_ = 0, done_before_ = 0;
  int64_t begin_ns_ = 0, last_draw_ns_ = 0;
};

}  // namespace mixlane::bench
