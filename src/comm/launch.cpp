#include "comm/launch.hpp"

#include <unistd.h>

#include <charconv>

#include "core/error.hpp"

namespace mixlane {
namespace {

using Variable = std::optional<std::string>;

int number(std::string_view name, const std::string& text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 0)
    fail(ErrorCode::invalid_argument, "{}='{}' is not a whole number; correct or unset it", name, text);
  return value;
}

int required_number(std::string_view name, const Variable& variable, std::string_view because) {
  if (!variable) fail(ErrorCode::invalid_argument, "{} is set but {} is not; set both or neither", because, name);
  return number(name, *variable);
}

int number_or(std::string_view name, const Variable& variable, int fallback) {
  return variable ? number(name, *variable) : fallback;
}

LaunchInfo from_mixlane(const Env::Launch& launch) {
  LaunchInfo info;
  info.source = "mixlane";
  info.rank = number("MIXLANE_RANK", *launch.mixlane_rank);
  info.num_ranks = required_number("MIXLANE_NUM_RANKS", launch.mixlane_num_ranks, "MIXLANE_RANK");
  if (!launch.mixlane_job)
    fail(ErrorCode::invalid_argument, "MIXLANE_RANK is set but MIXLANE_JOB is not; set both or neither");
  info.local_rank = info.rank;
  info.num_local_ranks = info.num_ranks;
  info.job = "mixlane:" + *launch.mixlane_job;
  return info;
}

LaunchInfo from_torchrun(const Env::Launch& launch) {
  LaunchInfo info;
  info.source = "torchrun";
  info.rank = number("RANK", *launch.rank);
  info.num_ranks = required_number("WORLD_SIZE", launch.world_size, "RANK");
  info.local_rank = number_or("LOCAL_RANK", launch.local_rank, info.rank);
  info.num_local_ranks = number_or("LOCAL_WORLD_SIZE", launch.local_world_size, info.num_ranks);
  if (info.num_ranks > 1 && (!launch.master_addr || !launch.master_port))
    fail(ErrorCode::invalid_argument,
         "RANK and WORLD_SIZE={} are set but {} is not; the ranks can't tell their launch from others", info.num_ranks,
         launch.master_addr ? "MASTER_PORT" : "MASTER_ADDR");
  info.job = fmt::format("torchrun:{}:{}:{}", launch.master_addr.value_or(""), launch.master_port.value_or(""),
                         launch.torchelastic_run_id.value_or(""));
  return info;
}

// All ranks of one host are children of the launcher's process on that host.
std::string parent_job(std::string_view source) { return fmt::format("{}:parent:{}", source, getppid()); }

LaunchInfo from_openmpi(const Env::Launch& launch) {
  LaunchInfo info;
  info.source = "openmpi";
  info.rank = number("OMPI_COMM_WORLD_RANK", *launch.ompi_rank);
  info.num_ranks = required_number("OMPI_COMM_WORLD_SIZE", launch.ompi_size, "OMPI_COMM_WORLD_RANK");
  info.local_rank = number_or("OMPI_COMM_WORLD_LOCAL_RANK", launch.ompi_local_rank, info.rank);
  info.num_local_ranks = number_or("OMPI_COMM_WORLD_LOCAL_SIZE", launch.ompi_local_size, info.num_ranks);
  info.job = launch.pmix_namespace ? "openmpi:" + *launch.pmix_namespace : parent_job("openmpi");
  return info;
}

// SLURM_TASKS_PER_NODE, as in "4", "2(x3),1". Tasks of the first node, or all if the list is not about this step.
int tasks_per_node(const std::string& text, int num_ranks) {
  int64_t total = 0;
  int first = 0;
  std::string_view rest = text;
  while (!rest.empty()) {
    const std::string_view entry = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), entry.size() + 1));
    const size_t bracket = entry.find("(x");
    const int tasks = number("SLURM_TASKS_PER_NODE", std::string(entry.substr(0, bracket)));
    int nodes = 1;
    if (bracket != std::string_view::npos)
      nodes = number("SLURM_TASKS_PER_NODE", std::string(entry.substr(bracket + 2, entry.find(')') - bracket - 2)));
    if (total == 0) first = tasks;
    total += int64_t{tasks} * nodes;
  }
  return total == num_ranks ? first : num_ranks;
}

LaunchInfo from_slurm(const Env::Launch& launch) {
  LaunchInfo info;
  info.source = "slurm";
  info.rank = number("SLURM_PROCID", *launch.slurm_procid);
  info.num_ranks = required_number("SLURM_NTASKS", launch.slurm_ntasks, "SLURM_PROCID");
  info.local_rank = number_or("SLURM_LOCALID", launch.slurm_localid, info.rank);
  info.num_local_ranks =
      launch.slurm_tasks_per_node ? tasks_per_node(*launch.slurm_tasks_per_node, info.num_ranks) : info.num_ranks;
  info.job = fmt::format("slurm:{}.{}", launch.slurm_job_id.value_or(""), *launch.slurm_step_id);
  return info;
}

LaunchInfo from_pmi(const Env::Launch& launch) {
  LaunchInfo info;
  info.source = "pmi";
  info.rank = number("PMI_RANK", *launch.pmi_rank);
  info.num_ranks = required_number("PMI_SIZE", launch.pmi_size, "PMI_RANK");
  info.local_rank = number_or("MPI_LOCALRANKID", launch.mpi_localrankid, info.rank);
  info.num_local_ranks = number_or("MPI_LOCALNRANKS", launch.mpi_localnranks, info.num_ranks);
  info.job = parent_job("pmi");
  return info;
}

// A task of an srun step. The shells of sbatch and salloc carry the variables as well, without a step or with one of the
// reserved step numbers at the top of the 32-bit range.
bool in_slurm_step(const Env::Launch& launch) {
  if (!launch.slurm_procid || !launch.slurm_step_id) return false;
  uint64_t step = 0;
  const std::string& text = *launch.slurm_step_id;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), step);
  return error == std::errc() && end == text.data() + text.size() && step < 0xfffffff0u;
}

// Variables in torchrun's style that a script under mpirun set by itself must say what mpirun says; a real torchrun below
// mpirun knows better.
void check_torchrun_against_openmpi(const LaunchInfo& info, const Env::Launch& launch) {
  if (!launch.ompi_rank || launch.torchelastic_run_id) return;
  const LaunchInfo outer = from_openmpi(launch);
  if (outer.rank != info.rank || outer.num_ranks != info.num_ranks)
    fail(ErrorCode::invalid_argument,
         "RANK={} and WORLD_SIZE={} contradict OMPI_COMM_WORLD_RANK={} and OMPI_COMM_WORLD_SIZE={}; unset one pair",
         info.rank, info.num_ranks, outer.rank, outer.num_ranks);
}

LaunchInfo from_first_launcher(const Env::Launch& launch) {
  if (launch.mixlane_rank) return from_mixlane(launch);
  if (launch.rank) {
    const LaunchInfo info = from_torchrun(launch);
    check_torchrun_against_openmpi(info, launch);
    return info;
  }
  if (launch.ompi_rank) return from_openmpi(launch);
  if (in_slurm_step(launch)) return from_slurm(launch);
  if (launch.pmi_rank) return from_pmi(launch);
  return {};
}

}  // namespace

LaunchInfo read_launch(const Env::Launch& launch) {
  const LaunchInfo info = from_first_launcher(launch);
  if (info.num_ranks < 1 || info.rank >= info.num_ranks)
    fail(ErrorCode::invalid_argument, "the {} variables say rank {} of {}; ranks count from 0 and stay below their number",
         info.source, info.rank, info.num_ranks);
  if (info.num_local_ranks < 1 || info.num_local_ranks > info.num_ranks || info.local_rank >= info.num_local_ranks)
    fail(ErrorCode::invalid_argument, "the {} variables say local rank {} of {} on this host, of {} ranks in all",
         info.source, info.local_rank, info.num_local_ranks, info.num_ranks);
  return info;
}

LaunchInfo launch_info() { return read_launch(Env::read().launch); }

}  // namespace mixlane
