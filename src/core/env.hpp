// Every environment variable that Mixlane reads, in one place: the only getenv of the code base.
#pragma once

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>

namespace mixlane {

// A snapshot, taken when a Context or a process group is made; later changes of the environment are not seen.
// The comments are the manual of each variable.
struct Env {
  // MIXLANE_MODELS: a folder of model files searched before the installed catalogue.
  std::filesystem::path models;
  // MIXLANE_TUNED: a folder of tuned tables that go before the installed ones.
  std::filesystem::path tuned;
  // MIXLANE_MODULES: the folder of modules loaded on demand (mixlane_onednn.so); default: beside libmixlane.so.
  std::filesystem::path modules;
  // MIXLANE_DEADLINE_MS: how long a rank waits for a peer, 1..3600000; default 30000.
  std::chrono::milliseconds deadline{30'000};
  // MIXLANE_NUM_THREADS: CPU threads per rank; default 0 = all cores this process may use / ranks on this host.
  int num_threads = 0;
  // MIXLANE_FAULT: injects a fault for tests, "kill:<stage>:<rank>:<epoch>" or "stall_<ms>:<stage>:<rank>:<epoch>",
  // stage = dispatch | combine: the rank does that to itself in the middle of sending that epoch. "jitter_<us>": on GPUs
  // every block of every dispatch and combine is late by a random time of up to so many microseconds.
  // "flip:<stage>:<rank>:<epoch>", on GPUs with MIXLANE_CHECK=protocol: the rank gets a row with a wrong bit.
  std::string fault;
  // MIXLANE_CHECK: "protocol" makes dispatch and combine on GPUs check themselves (docs/stages/dispatch.md): windows are
  // poisoned, rows carry checksums and epochs; what is wrong comes as Status `internal`. Costs several launches per call.
  bool check_protocol = false;
  // MIXLANE_CUPTI: the file libcupti.so that kernel times are taken with; default: searched in the usual places.
  std::filesystem::path cupti;

  // The launcher's variables, as they are (see launch_info).
  struct Launch {
    std::optional<std::string> mixlane_rank, mixlane_num_ranks, mixlane_job;  // mixlane --ranks
    std::optional<std::string> rank, world_size, local_rank, local_world_size, master_addr, master_port,
        torchelastic_run_id;                                                                            // torchrun
    std::optional<std::string> ompi_rank, ompi_size, ompi_local_rank, ompi_local_size, pmix_namespace;  // mpirun
    std::optional<std::string> slurm_procid, slurm_ntasks, slurm_localid, slurm_tasks_per_node, slurm_job_id,
        slurm_step_id;                                                                        // srun
    std::optional<std::string> pmi_rank, pmi_size, pmi_id, mpi_localrankid, mpi_localnranks;  // MPICH's hydra
  } launch;

  // Throws invalid_argument naming the variable, its value and what is allowed.
  static Env read();
};

}  // namespace mixlane
