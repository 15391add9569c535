// Rank processes for tests: forked, told their rank by the environment, with what they printed and how they ended.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

namespace mixlane::test {

struct Ended {
  int exit_code = -1;  // -1: ended by a signal
  int signal = 0;
  std::string error;  // what() of the exception that ended it; exit code 1
};

// Runs `body(rank)` in num_ranks forked processes of one launch and waits for all of them. A process still there after 30 s
// is killed.
inline std::vector<Ended> run_ranks(int num_ranks, const std::function<void(int)>& body) {
  static std::atomic<int> num_launches{0};
  const std::string job = "test-" + std::to_string(getpid()) + "-" + std::to_string(num_launches++);
  std::vector<pid_t> processes;
  std::vector<int> errors;
  for (int rank = 0; rank < num_ranks; ++rank) {
    int ends[2];
    if (pipe(ends) != 0) abort();
    const pid_t process = fork();
    if (process == 0) {
      for (const int other : errors) close(other);
      close(ends[0]);
      setenv("MIXLANE_RANK", std::to_string(rank).c_str(), 1);
      setenv("MIXLANE_NUM_RANKS", std::to_string(num_ranks).c_str(), 1);
      setenv("MIXLANE_JOB", job.c_str(), 1);
      try {
        body(rank);
      } catch (const std::exception& error) {
        const std::string text = error.what();
        if (write(ends[1], text.data(), text.size()) < 0) _exit(3);
        _exit(1);
      }
      _exit(0);
    }
    close(ends[1]);
    processes.push_back(process);
    errors.push_back(ends[0]);
  }
  std::vector<Ended> all(static_cast<size_t>(num_ranks));
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  for (int rank = 0; rank < num_ranks; ++rank) {
    int state = 0;
    while (waitpid(processes[rank], &state, WNOHANG) == 0) {
      if (std::chrono::steady_clock::now() > give_up) kill(processes[rank], SIGKILL);
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    if (WIFEXITED(state)) all[rank].exit_code = WEXITSTATUS(state);
    if (WIFSIGNALED(state)) all[rank].signal = WTERMSIG(state);
    char buffer[4096];
    const ssize_t got = read(errors[rank], buffer, sizeof(buffer));
    if (got > 0) all[rank].error.assign(buffer, static_cast<size_t>(got));
    close(errors[rank]);
  }
  return all;
}

}  // namespace mixlane::test
