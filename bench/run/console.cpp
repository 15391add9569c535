#include "run/console.hpp"

#include <fmt/chrono.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "core/error.hpp"
#include "core/format.hpp"
#include "measure/clock.hpp"

namespace mixlane::bench {
namespace {

constexpr int kBarCells = 14;
constexpr int64_t kRedrawNs = 100'000'000;

int terminal_columns() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

std::string duration_text(double seconds) {
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  if (whole >= 3600) return fmt::format("{}h{:02}m", whole / 3600, whole / 60 % 60);
  return whole >= 60 ? fmt::format("{}m{:02}s", whole / 60, whole % 60) : fmt::format("{}s", whole);
}

Console::Console(const ConsoleOptions& options)
    : options_(options), terminal_(options.speaks && !options.quiet && isatty(STDERR_FILENO)) {}

Console::~Console() { erase(); }

void Console::log_to(const std::filesystem::path& path) {
  if (!options_.speaks) return;
  log_.open(path, std::ios::app);
  if (!log_) fail(ErrorCode::io_error, "can't write {}; give another folder with --out", path.string());
}

void Console::say(std::string_view text) {
  if (!options_.quiet) print(text, options_.text_on_stderr);
  log(text);
}

void Console::report(std::string_view text) {
  print(text, options_.text_on_stderr);
  log(text);
}

void Console::warn(std::string_view text) {
  const std::string line = fmt::format("warning: {}", text);
  print(line, true);
  log(line);
}

void Console::note(std::string_view text) { log(text); }

void Console::begin_cells(int done, int total) {
  done_ = done_before_ = done;
  total_ = total;
  begin_ns_ = now_ns();
}

void Console::begin_cell(std::string_view what) {
  cell_ = what;
  log(fmt::format("[{}/{}] {}", done_ + 1, total_, what));
  if (terminal_)
    draw("checking");
  else if (!options_.quiet)
    print(fmt::format("[{}/{}] {}{}", done_ + 1, total_, eta(), what), true);
}

void Console::cell_state(std::string_view what) {
  if (!terminal_ || now_ns() - last_draw_ns_ < kRedrawNs) return;
  draw(what);
}

void Console::end_cell() {
  ++done_;
  erase();
}

void Console::print(std::string_view text, bool to_stderr) {
  if (!options_.speaks) return;
  erase();
  std::FILE* stream = to_stderr ? stderr : stdout;
  fmt::print(stream, "{}\n", text);
  std::fflush(stream);
}

void Console::log(std::string_view text) {
  if (!log_.is_open()) return;
  const auto now = std::chrono::system_clock::now();
  log_ << fmt::format("{:%H:%M:%S}.{:03} {}\n", fmt::localtime(std::chrono::system_clock::to_time_t(now)),
                      std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000, text);
  log_.flush();
}

void Console::draw(std::string_view what) {
  const int filled = total_ > 0 ? kBarCells * done_ / total_ : 0;
  std::string line = fmt::format(" [{}{}] {}/{}  {}{}  {}", std::string(filled, '#'), std::string(kBarCells - filled, '-'),
                                 done_, total_, eta(), cell_, what);
  line.resize(std::min<size_t>(line.size(), static_cast<size_t>(terminal_columns() - 1)));
  fmt::print(stderr, "\r\x1b[K{}", line);
  std::fflush(stderr);
  drawn_ = true;
  last_draw_ns_ = now_ns();
}

void Console::erase() {
  if (!drawn_) return;
  fmt::print(stderr, "\r\x1b[K");
  std::fflush(stderr);
  drawn_ = false;
}

// Unknown before a cell of this run is done.
std::string Console::eta() const {
  if (done_ == done_before_) return "";
  const double per_cell_s = static_cast<double>(now_ns() - begin_ns_) * 1e-9 / (done_ - done_before_);
  return fmt::format("eta {}  ", duration_text(per_cell_s * (total_ - done_)));
}

}  // namespace mixlane::bench
