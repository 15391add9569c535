// Running the program `mixlane` as its users do.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace mixlane::bench::test {

using Variables = std::vector<std::pair<std::string, std::string>>;

// A process whose stdout and stderr are read, each into a text.
class Program {
 public:
  explicit Program(std::vector<std::string> command, const Variables& variables = {}) {
    int out[2], err[2];
    if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) abort();
    pid_ = fork();
    if (pid_ == 0) {
      dup2(out[1], STDOUT_FILENO);
      dup2(err[1], STDERR_FILENO);
      for (const auto& [name, value] : variables) setenv(name.c_str(), value.c_str(), 1);
      std::vector<char*> words;
      for (std::string& word : command) words.push_back(word.data());
      words.push_back(nullptr);
      execvp(words[0], words.data());
      _exit(127);
    }
    close(out[1]);
    close(err[1]);
    out_fd_ = out[0];
    err_fd_ = err[0];
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  ~Program() {
    if (!ended_) {
      kill(pid_, SIGKILL);
      wait();
    }
  }

  pid_t pid() const { return pid_; }

  // Reads to the end of both streams, which is when the last process that holds them has ended; 60 s at most.
  void wait() {
    if (std::exchange(ended_, true)) return;
    pollfd fds[2] = {{out_fd_, POLLIN, 0}, {err_fd_, POLLIN, 0}};
    std::string* texts[2] = {&out, &err};
    while (fds[0].fd >= 0 || fds[1].fd >= 0) {
      if (poll(fds, 2, 60'000) <= 0) {
        ADD_FAILURE() << "still running:\n" << out << err;
        kill(pid_, SIGKILL);
        break;
      }
      for (int i = 0; i < 2; ++i) {
        if (fds[i].fd < 0 || fds[i].revents == 0) continue;
        char buffer[4096];
        const ssize_t got = read(fds[i].fd, buffer, sizeof(buffer));
        if (got > 0)
          texts[i]->append(buffer, static_cast<size_t>(got));
        else
          fds[i].fd = -1;
      }
    }
    close(out_fd_);
    close(err_fd_);
    int status = 0;
    waitpid(pid_, &status, 0);
    exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  std::string out, err;
  int exit_code = -1;

 private:
  pid_t pid_ = -1;
  int out_fd_ = -1, err_fd_ = -1;
  bool ended_ = false;
};

// A folder of its own for a test, and the program run on the tiny model with its results there.
class BenchTest : public testing::Test {
 protected:
  BenchTest() {
    std::string name = (std::filesystem::temp_directory_path() / "mixlane_test_XXXXXX").string();
    folder_ = mkdtemp(name.data());
    // What the program leaves behind becomes a child of this process, where left_behind() finds it.
    prctl(PR_SET_CHILD_SUBREAPER, 1);
  }
  ~BenchTest() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path runs() const { return folder_ / "runs"; }

  std::vector<std::string> command(std::vector<std::string> more) const {
    std::vector<std::string> all{MIXLANE_PROGRAM, "bench",     "--model", MIXLANE_TINY_MODEL, "--out",
                                 runs().string(), "--threads", "1",       "--peak-time",      "0"};
    const bool timed = std::find(more.begin(), more.end(), "--max-time") != more.end();
    if (!timed) more.insert(more.end(), {"--min-time", "0", "--max-time", "0.02"});
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  // Result files below runs(), sorted.
  std::vector<std::filesystem::path> results() const {
    std::vector<std::filesystem::path> found;
    std::error_code ignored;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(runs(), ignored))
      if (entry.path().extension() == ".json" && entry.path().parent_path().filename().string().starts_with("results_"))
        found.push_back(entry.path());
    std::sort(found.begin(), found.end());
    return found;
  }

  // Processes that outlived the program; waits a moment for those that are ending.
  static int left_behind() {
    int alive = 0;
    for (int tries = 0; tries < 100; ++tries) {
      pid_t pid = 0;
      while ((pid = waitpid(-1, nullptr, WNOHANG)) > 0) {
      }
      alive = pid == 0 ? 1 : 0;
      if (alive == 0) break;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return alive;
  }

  static bool eventually(const std::function<bool()>& condition) {
    for (int tries = 0; tries < 3000; ++tries) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }

  std::filesystem::path folder_;
};

inline void expect_mentions(const std::string& text, const std::vector<std::string>& mentions) {
  for (const std::string& mention : mentions)
    EXPECT_NE(text.find(mention), std::string::npos) << "'" << mention << "' missing in: " << text;
}

}  // namespace mixlane::bench::test
