// Starting the ranks of one machine: `mixlane bench --ranks N` without torchrun, mpirun or srun.
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace mixlane::bench {

struct LocalLaunch {
  int num_ranks = 0;
  std::vector<std::string> arguments;    // this program's command line, argv[0] included: every rank gets the same
  std::string if_interrupted;            // said on SIGINT and SIGTERM
  bool survivors_go_on = false;          // the death of a rank other than 0 does not end the others
  std::chrono::milliseconds deadline{};  // how long the ranks wait for each other
};

// Runs this program once per rank with MIXLANE_RANK, MIXLANE_NUM_RANKS and MIXLANE_JOB set, and waits for all of them.
// Lines that ranks other than 0 write to stderr get "[rank r] " in front. SIGINT and SIGTERM are passed on; a rank never
// outlives this process, however that ends. After one has failed, the others get a little more than
// the deadline to say so and end, then they are killed. Returns the exit code: 0, rank 0's, or kExitFailed if another rank
// failed, 128 + signal if the launch was interrupted.
int run_local_ranks(const LocalLaunch& launch);

}  // namespace mixlane::bench
