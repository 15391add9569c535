#include "comm/launch.hpp"

#include <gtest/gtest.h>

#include "support/errors.hpp"

namespace mixlane {
namespace {

using test::expect_error;

void expect_info(const LaunchInfo& info, const LaunchInfo& expected) {
  EXPECT_EQ(info.source, expected.source);
  EXPECT_EQ(info.rank, expected.rank);
  EXPECT_EQ(info.num_ranks, expected.num_ranks);
  EXPECT_EQ(info.local_rank, expected.local_rank);
  EXPECT_EQ(info.num_local_ranks, expected.num_local_ranks);
  if (!expected.job.empty()) {
    EXPECT_EQ(info.job, expected.job);
  }
}

Env::Launch torchrun(const char* rank, const char* size) {
  Env::Launch launch;
  launch.rank = rank;
  launch.world_size = size;
  launch.master_addr = "127.0.0.1";
  launch.master_port = "29500";
  return launch;
}

Env::Launch openmpi(const char* rank, const char* size) {
  Env::Launch launch;
  launch.ompi_rank = rank;
  launch.ompi_size = size;
  launch.pmix_namespace = "4711";
  return launch;
}

TEST(Launch, NothingSetIsOneRankAlone) { expect_info(read_launch({}), {"none", 0, 1, 0, 1, ""}); }

TEST(Launch, OwnLauncherWinsOverTheOneAroundIt) {
  Env::Launch launch = openmpi("0", "1");
  launch.mixlane_rank = "2";
  launch.mixlane_num_ranks = "3";
  launch.mixlane_job = "x";
  expect_info(read_launch(launch), {"mixlane", 2, 3, 2, 3, "mixlane:x"});
}

TEST(Launch, Torchrun) {
  Env::Launch launch = torchrun("5", "8");
  expect_info(read_launch(launch), {"torchrun", 5, 8, 5, 8, "torchrun:127.0.0.1:29500:"});
  launch.local_rank = "1";
  launch.local_world_size = "4";
  launch.torchelastic_run_id = "r";
  expect_info(read_launch(launch), {"torchrun", 5, 8, 1, 4, "torchrun:127.0.0.1:29500:r"});
}

TEST(Launch, Openmpi) {
  Env::Launch launch = openmpi("3", "6");
  launch.ompi_local_rank = "0";
  launch.ompi_local_size = "2";
  expect_info(read_launch(launch), {"openmpi", 3, 6, 0, 2, "openmpi:4711"});
}

TEST(Launch, SlurmCountsTheTasksOfANode) {
  Env::Launch launch;
  launch.slurm_procid = "1";
  launch.slurm_ntasks = "4";
  launch.slurm_localid = "1";
  launch.slurm_job_id = "77";
  launch.slurm_step_id = "2";
  launch.slurm_tasks_per_node = "4";
  expect_info(read_launch(launch), {"slurm", 1, 4, 1, 4, "slurm:77.2"});
  launch.slurm_tasks_per_node = "2(x2)";
  expect_info(read_launch(launch), {"slurm", 1, 4, 1, 2, "slurm:77.2"});
  launch.slurm_tasks_per_node = "8(x2),1";  // the allocation's, not this step's
  expect_info(read_launch(launch), {"slurm", 1, 4, 1, 4, "slurm:77.2"});
}

TEST(Launch, ABatchScriptIsNoSlurmTask) {
  Env::Launch launch;
  launch.slurm_procid = "0";
  launch.slurm_ntasks = "4";
  expect_info(read_launch(launch), {"none", 0, 1, 0, 1, ""});
  launch.slurm_step_id = "4294967291";
  expect_info(read_launch(launch), {"none", 0, 1, 0, 1, ""});
}

TEST(Launch, Hydra) {
  Env::Launch launch;
  launch.pmi_rank = "1";
  launch.pmi_size = "2";
  expect_info(read_launch(launch), {"pmi", 1, 2, 1, 2, ""});
  launch.mpi_localrankid = "0";
  launch.mpi_localnranks = "1";
  expect_info(read_launch(launch), {"pmi", 1, 2, 0, 1, ""});
}

TEST(Launch, ContradictionsAreNamed) {
  expect_error(ErrorCode::invalid_argument, {"rank 8 of 8", "torchrun"}, [] { read_launch(torchrun("8", "8")); });
  expect_error(ErrorCode::invalid_argument, {"RANK", "'x1'"}, [] { read_launch(torchrun("x1", "8")); });
  expect_error(ErrorCode::invalid_argument, {"RANK", "'-1'"}, [] { read_launch(torchrun("-1", "8")); });
  Env::Launch launch = torchrun("0", "8");
  launch.world_size.reset();
  expect_error(ErrorCode::invalid_argument, {"RANK is set but WORLD_SIZE is not"}, [&] { read_launch(launch); });
  launch = torchrun("0", "8");
  launch.master_port.reset();
  expect_error(ErrorCode::invalid_argument, {"MASTER_PORT is not"}, [&] { read_launch(launch); });
  launch = torchrun("1", "4");
  launch.local_world_size = "5";
  expect_error(ErrorCode::invalid_argument, {"of 5 on this host, of 4"}, [&] { read_launch(launch); });

  launch = torchrun("1", "4");
  launch.ompi_rank = "2";
  launch.ompi_size = "4";
  expect_error(ErrorCode::invalid_argument, {"RANK=1", "OMPI_COMM_WORLD_RANK=2"}, [&] { read_launch(launch); });
  launch.torchelastic_run_id = "real";  // a torchrun that mpirun started
  EXPECT_EQ(read_launch(launch).source, "torchrun");
}

}  // namespace
}  // namespace mixlane
