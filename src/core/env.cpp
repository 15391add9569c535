#include "core/env.hpp"

#include <charconv>
#include <cstdlib>

#include "core/error.hpp"

namespace mixlane {
namespace {

std::optional<std::string> variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? std::optional<std::string>(value) : std::nullopt;
}

int64_t integer(const char* name, int64_t fallback, int64_t low, int64_t high) {
  const auto text = variable(name);
  if (!text) return fallback;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), value);
  if (error != std::errc() || end != text->data() + text->size() || value < low || value > high)
    fail(ErrorCode::invalid_argument, "{}='{}': set it to a whole number from {} to {}, or unset it", name, *text, low,
         high);
  return value;
}

}  // namespace

Env Env::read() {
  Env env;
  env.models = variable("MIXLANE_MODELS").value_or("");
  env.tuned = variable("MIXLANE_TUNED").value_or("");
  env.modules = variable("MIXLANE_MODULES").value_or("");
  env.deadline = std::chrono::milliseconds(integer("MIXLANE_DEADLINE_MS", 30'000, 1, 3'600'000));
  env.num_threads = static_cast<int>(integer("MIXLANE_NUM_THREADS", 0, 0, 4096));
  env.fault = variable("MIXLANE_FAULT").value_or("");
  const std::string check = variable("MIXLANE_CHECK").value_or("");
  if (!check.empty() && check != "protocol")
    fail(ErrorCode::invalid_argument, "MIXLANE_CHECK='{}': set it to protocol, or unset it", check);
  env.check_protocol = check == "protocol";
  env.cupti = variable("MIXLANE_CUPTI").value_or("");

  Launch& launch = env.launch;
  launch.mixlane_rank = variable("MIXLANE_RANK");
  launch.mixlane_num_ranks = variable("MIXLANE_NUM_RANKS");
  launch.mixlane_job = variable("MIXLANE_JOB");
  launch.rank = variable("RANK");
  launch.world_size = variable("WORLD_SIZE");
  launch.local_rank = variable("LOCAL_RANK");
  launch.local_world_size = variable("LOCAL_WORLD_SIZE");
  launch.master_addr = variable("MASTER_ADDR");
  launch.master_port = variable("MASTER_PORT");
  launch.torchelastic_run_id = variable("TORCHELASTIC_RUN_ID");
  launch.ompi_rank = variable("OMPI_COMM_WORLD_RANK");
  launch.ompi_size = variable("OMPI_COMM_WORLD_SIZE");
  launch.ompi_local_rank = variable("OMPI_COMM_WORLD_LOCAL_RANK");
  launch.ompi_local_size = variable("OMPI_COMM_WORLD_LOCAL_SIZE");
  launch.pmix_namespace = variable("PMIX_NAMESPACE");
  launch.slurm_procid = variable("SLURM_PROCID");
  launch.slurm_ntasks = variable("SLURM_NTASKS");
  launch.slurm_localid = variable("SLURM_LOCALID");
  launch.slurm_tasks_per_node = variable("SLURM_TASKS_PER_NODE");
  launch.slurm_job_id = variable("SLURM_JOB_ID");
  launch.slurm_step_id = variable("SLURM_STEP_ID");
  launch.pmi_rank = variable("PMI_RANK");
  launch.pmi_size = variable("PMI_SIZE");
  launch.pmi_id = variable("PMI_ID");
  launch.mpi_localrankid = variable("MPI_LOCALRANKID");
  launch.mpi_localnranks = variable("MPI_LOCALNRANKS");
  return env;
}

}  // namespace mixlane
