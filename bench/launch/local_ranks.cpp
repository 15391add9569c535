#include "launch/local_ranks.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "command.hpp"
#include "core/error.hpp"
#include "core/format.hpp"
#include "launch/line_prefixer.hpp"

namespace mixlane::bench {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::seconds;

constexpr seconds kGrace{2};  // to end after a signal, or after a rank that said itself why it failed

// What execve wants, made before fork: a child of fork may only call async-signal-safe functions.
class CStrings {
 public:
  explicit CStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {
    for (std::string& text : strings_) pointers_.push_back(text.data());
    pointers_.push_back(nullptr);
  }
  char* const* data() const { return pointers_.data(); }

 private:
  std::vector<std::string> strings_;
  std::vector<char*> pointers_;
};

std::vector<std::string> environment_of(int rank, int num_ranks, const std::string& job) {
  std::vector<std::string> variables;
  for (char** entry = environ; *entry; ++entry)
    if (!std::string_view(*entry).starts_with("MIXLANE_RANK=") &&
        !std::string_view(*entry).starts_with("MIXLANE_NUM_RANKS=") && !std::string_view(*entry).starts_with("MIXLANE_JOB="))
      variables.emplace_back(*entry);
  variables.push_back(fmt::format("MIXLANE_RANK={}", rank));
  variables.push_back(fmt::format("MIXLANE_NUM_RANKS={}", num_ranks));
  variables.push_back("MIXLANE_JOB=" + job);
  return variables;
}

struct Child {
  pid_t pid = -1;
  bool running = false;
  int status = 0;  // of waitpid
  bool failed() const { return !running && status != 0; }
};

class LocalGroup {
 public:
  explicit LocalGroup(const LocalLaunch& launch);
  ~LocalGroup();
  void start();
  int wait();

 private:
  void start_rank(int rank, const std::string& job);
  void take_signals();
  void reap();
  void on_end(int rank);
  void signal_all(int signal);
  bool any_running() const;
  int milliseconds_left() const;
  int exit_code() const;

  const LocalLaunch& launch_;
  sigset_t signals_{}, old_mask_{};
  int signal_fd_ = -1;
  std::vector<Child> children_;
  std::vector<LinePrefixer> stderrs_;
  bool ending_ = false;
  Clock::time_point kill_at_{};
  int interrupted_by_ = 0;
};

LocalGroup::LocalGroup(const LocalLaunch& launch) : launch_(launch), children_(launch.num_ranks) {
  sigemptyset(&signals_);
  for (int signal : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) sigaddset(&signals_, signal);
  sigprocmask(SIG_BLOCK, &signals_, &old_mask_);
  signal_fd_ = signalfd(-1, &signals_, SFD_CLOEXEC | SFD_NONBLOCK);
  if (signal_fd_ < 0) fail(ErrorCode::io_error, "can't watch for signals: {}", std::strerror(errno));
}

void LocalGroup::start() {
  const std::string job = fmt::format("{}-{}", getpid(), Clock::now().time_since_epoch().count());
  for (int rank = 0; rank < launch_.num_ranks; ++rank) start_rank(rank, job);
}

LocalGroup::~LocalGroup() {
  signal_all(SIGKILL);
  for (Child& child : children_)
    if (child.running) waitpid(child.pid, &child.status, 0);
  if (signal_fd_ >= 0) close(signal_fd_);
  sigprocmask(SIG_SETMASK, &old_mask_, nullptr);
}

void LocalGroup::start_rank(int rank, const std::string& job) {
  const CStrings arguments(launch_.arguments);
  const CStrings environment(environment_of(rank, launch_.num_ranks, job));
  int ends[2] = {-1, -1};
  if (rank > 0) {
    if (pipe2(ends, O_CLOEXEC) != 0)
      fail(ErrorCode::io_error, "can't make a pipe for rank {}: {}", rank, std::strerror(errno));
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    stderrs_.emplace_back(ends[0], fmt::format("[rank {}] ", rank));
  }
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    // The parent may have ended before the line above: then nobody would send the signal.
    if (getppid() != parent) _exit(kExitFailed);
    sigprocmask(SIG_SETMASK, &old_mask_, nullptr);
    if (rank > 0) dup2(ends[1], STDERR_FILENO);
    execve("/proc/self/exe", arguments.data(), environment.data());
    _exit(127);
  }
  if (ends[1] >= 0) close(ends[1]);
  if (pid < 0)
    fail(ErrorCode::out_of_memory, "can't start rank {} of {}: {}", rank, launch_.num_ranks, std::strerror(errno));
  children_[rank] = {pid, true, 0};
}

int LocalGroup::wait() {
  while (any_running()) {
    std::vector<pollfd> fds{{signal_fd_, POLLIN, 0}};
    for (const LinePrefixer& stream : stderrs_)
      if (stream.fd() >= 0) fds.push_back({stream.fd(), POLLIN, 0});
    poll(fds.data(), fds.size(), milliseconds_left());
    for (LinePrefixer& stream : stderrs_)
      if (stream.fd() >= 0) stream.forward();
    take_signals();
    reap();
    if (ending_ && Clock::now() >= kill_at_) signal_all(SIGKILL);
  }
  return exit_code();
}

void LocalGroup::take_signals() {
  signalfd_siginfo info;
  while (read(signal_fd_, &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
    if (info.ssi_signo == SIGCHLD) continue;
    if (interrupted_by_ == 0)
      fmt::print(stderr, "\nmixlane: {}: {}\n", strsignal(static_cast<int>(info.ssi_signo)), launch_.if_interrupted);
    interrupted_by_ = static_cast<int>(info.ssi_signo);
    signal_all(interrupted_by_);
    ending_ = true;
    kill_at_ = Clock::now() + kGrace;
  }
}

void LocalGroup::reap() {
  for (int rank = 0; rank < launch_.num_ranks; ++rank) {
    Child& child = children_[rank];
    if (!child.running || waitpid(child.pid, &child.status, WNOHANG) != child.pid) continue;
    child.running = false;
    on_end(rank);
  }
}

void LocalGroup::on_end(int rank) {
  const Child& child = children_[rank];
  if (!child.failed() || interrupted_by_ != 0) return;
  const bool others_go_on = launch_.survivors_go_on && rank != 0;
  if (WIFSIGNALED(child.status) && !(ending_ && WTERMSIG(child.status) == SIGKILL && Clock::now() >= kill_at_))
    fmt::print(stderr, "mixlane: rank {} (process {}) was ended by signal {} ({}){}\n", rank, child.pid,
               WTERMSIG(child.status), strsignal(WTERMSIG(child.status)), others_go_on ? "; the others go on (--mask)" : "");
  if (others_go_on || ending_) return;
  ending_ = true;
  // Of a rank that was killed the others learn at their deadline; one that failed has told the user why.
  kill_at_ = Clock::now() + kGrace + (WIFSIGNALED(child.status) ? launch_.deadline : launch_.deadline.zero());
}

void LocalGroup::signal_all(int signal) {
  for (const Child& child : children_)
    if (child.running) kill(child.pid, signal);
}

bool LocalGroup::any_running() const {
  for (const Child& child : children_)
    if (child.running) return true;
  return false;
}

int LocalGroup::milliseconds_left() const {
  if (!ending_) return -1;
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(kill_at_ - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left + 1, 10, 60'000));
}

int LocalGroup::exit_code() const {
  if (interrupted_by_ != 0) return 128 + interrupted_by_;
  const int first = children_[0].status;
  if (first != 0) return WIFEXITED(first) ? WEXITSTATUS(first) : kExitFailed;
  if (launch_.survivors_go_on) return kExitOk;
  for (const Child& child : children_)
    if (child.failed()) return kExitFailed;
  return kExitOk;
}

}  // namespace

int run_local_ranks(const LocalLaunch& launch) {
  LocalGroup group(launch);
  group.start();
  return group.wait();
}

}  // namespace mixlane::bench
