// A group of ranks: who they are, how they meet, and the memory they share.
#pragma once

#include <chrono>
#include <span>
#include <vector>

#include "mixlane/core.hpp"

namespace mixlane {

// Bytes of every rank in one allocation, mapped by all of them. Rank r may write only what a protocol assigns to it
// in a peer's part. Released collectively when the last rank lets go; it never has a name in a file system.
class SymmetricMemory {
 public:
  virtual ~SymmetricMemory() = default;
  // This process's address of `rank`'s part; part(own rank) is local.
  virtual std::byte* part(int rank) const = 0;
  virtual int64_t bytes_per_rank() const = 0;
  virtual Device device() const = 0;
};

// One member of the expert-parallel group. A rank is an object, not a process: a test may hold eight of them in eight
// threads. Everything here is set-up: collective, by message, never on the path of dispatch or combine. All calls are
// collective unless they say otherwise, and every wait on a peer ends at the deadline with Error(peer_timeout).
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int num_ranks() const = 0;

  // Every rank's `bytes`, in rank order.
  virtual std::vector<std::string> all_gather(std::string_view bytes) = 0;
  // Zeroed memory, this rank's part on `device`: all ranks on the CPU, or all on GPUs of one kind (several may share one).
  // `what` names it in errors; ranks that ask for different sizes or kinds get config_mismatch with both values, a size
  // that does not fit gets out_of_memory with what is needed and what is free, GPUs that can't reach each other's memory
  // get unsupported naming them, on every rank alike.
  virtual std::shared_ptr<SymmetricMemory> allocate(int64_t bytes_per_rank, std::string_view what, Device device = {}) = 0;

  void barrier() { all_gather(""); }
  // Throws config_mismatch naming `what`, the ranks and their values unless all ranks pass the same text.
  void require_equal(std::string_view what, std::string_view value);

  std::chrono::milliseconds deadline() const { return deadline_; }
  void set_deadline(std::chrono::milliseconds deadline) { deadline_ = deadline; }  // local; default 30 s

 private:
  std::chrono::milliseconds deadline_{30'000};
};

// num_ranks members of one group for threads of this process; member i belongs to the thread that plays rank i.
std::vector<std::shared_ptr<Communicator>> make_thread_group(int num_ranks);

// The group this process was started into, by `mixlane --ranks`, torchrun (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
// MASTER_PORT), mpirun or srun, read from `env` variables; one rank alone if none of them is set. All ranks must be on
// one host: spanning hosts throws unsupported. Blocks until all ranks have met or the deadline passed.
std::shared_ptr<Communicator> make_process_group(std::chrono::milliseconds deadline = std::chrono::seconds(30));

// What the environment says of the launch, without meeting anyone. source is "mixlane", "torchrun", "openmpi", "slurm",
// "pmi" or "none".
struct LaunchInfo {
  std::string source = "none";
  int rank = 0;
  int num_ranks = 1;
  int local_rank = 0;
  int num_local_ranks = 1;
  std::string job;  // the same text on every rank of this launch and on no other
};
// Throws invalid_argument if the variables contradict each other.
LaunchInfo launch_info();

}  // namespace mixlane
