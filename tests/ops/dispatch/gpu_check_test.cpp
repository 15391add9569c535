// MIXLANE_CHECK=protocol: silent on calls that are right, and names the row that is not.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include "ops/dispatch/gpu_faults.hpp"
#include "support/gpu.hpp"
#include "support/rank_threads.hpp"

namespace mixlane {
namespace {

using test::GpuCall;
using test::GpuRank;
using test::Inputs;
using test::Oracle;
using test::Rng;

class ProtocolCheckGpu : public test::GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    setenv("MIXLANE_CHECK", "protocol", 1);
  }
  void TearDown() override { unsetenv("MIXLANE_CHECK"); }
};

DispatcherConfig config_with(WireFormat wire, CombineWire combine_wire) {
  DispatcherConfig config;
  config.hidden = 288;
  config.num_topk = 3;
  config.num_experts = 11;
  config.max_tokens = 45;
  config.wire = wire;
  config.combine_wire = combine_wire;
  return config;
}

// Dispatch and combine in turn, one of them twice now and then; the last one from a graph.
void play(std::shared_ptr<Communicator> comm, const DispatcherConfig& config, int num_rounds) {
  GpuRank gpu_rank(comm, config);
  const int rank = comm->rank();
  for (int round = 0; round < num_rounds; ++round) {
    const std::vector<Inputs> inputs = test::make_all_inputs(static_cast<uint64_t>(round), config, comm->num_ranks());
    const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
    ReceivedRows received =
        gpu_rank.dispatch(inputs[rank], {.fp8_input = config.wire != WireFormat::bf16 && round % 2 == 1});
    if (round % 3 == 1) received = gpu_rank.dispatch(inputs[rank]);
    test::expect_received(received, oracle, rank);
    for (int times = 0; config.wire == WireFormat::bf16 && times < 1 + round % 2; ++times) {
      if (round % 4 == 3)
        gpu_rank.combine_reduced(received, oracle, DType::bf16);
      else
        EXPECT_EQ(gpu_rank.combine(received, oracle, round % 2 == 0), oracle.output(rank, round % 2 == 0));
    }
    const Status status = gpu_rank.take_status();
    EXPECT_TRUE(status.ok()) << describe(status);
  }
}

TEST_F(ProtocolCheckGpu, SilentOnWhatIsRight) {
  for (const int num_ranks : {1, 2, 5})
    for (const CombineWire wire : {CombineWire::bf16, CombineWire::fp8_1x128, CombineWire::f32, CombineWire::f64})
      test::run_ranks(num_ranks, [&](auto comm) { play(comm, config_with(WireFormat::bf16, wire), 8); });
  for (const WireFormat wire : {WireFormat::fp8_1x128, WireFormat::fp8_row, WireFormat::mxfp4})
    test::run_ranks(3, [&](auto comm) { play(comm, config_with(wire, CombineWire::bf16), 5); });
}

TEST_F(ProtocolCheckGpu, WorksInGraphs) {
  test::run_ranks(2, [](auto comm) {
    const DispatcherConfig config = config_with(WireFormat::fp8_1x128, CombineWire::bf16);
    GpuRank gpu_rank(comm, config);
    const GpuCall on_device{.count_on_device = true};
    ReceivedRows rows;
    const gpu::Graph graph = gpu::Graph::capture(test::device_of_rank(comm->rank()), [&](Stream stream) {
      rows = gpu_rank.dispatcher().dispatch(gpu_rank.dispatch_args(0, on_device), stream);
    });
    comm->barrier();
    for (uint64_t seed = 0; seed < 6; ++seed) {
      const std::vector<Inputs> inputs = test::make_all_inputs(seed, config, 2);
      gpu_rank.send(inputs[comm->rank()], on_device);
      graph.launch(gpu_rank.stream());
      test::expect_received(gpu_rank.fetch(rows), {gpu_rank.dispatcher().config(), inputs}, comm->rank());
      const Status status = gpu_rank.take_status();
      EXPECT_TRUE(status.ok()) << describe(status);
    }
  });
}

// Rank 1 gets a wrong bit in epoch 3: it says so in this epoch, about the first slot, and nobody says anything else.
// (Of so many tokens that no inbox takes their sums: those are cleared by the time of the comparison.)
void expect_the_flip(const char* fault, bool in_combine, WireFormat wire, std::string_view variant) {
  SCOPED_TRACE(std::string(variant));
  const test::FaultScope scope(fault);
  test::run_ranks(2, [&](auto comm) {
    DispatcherConfig config = config_with(wire, CombineWire::bf16);
    const int num_tokens = in_combine ? 520 : 40;
    config.max_tokens = num_tokens;
    config.copy_engine = true;
    GpuRank gpu_rank(comm, config);
    const int rank = comm->rank();
    for (int epoch = 1; epoch <= 4; ++epoch) {
      Rng rng(5);
      std::vector<Inputs> inputs;
      for (int r = 0; r < 2; ++r) inputs.push_back(test::make_inputs(rng, config, num_tokens, false));
      const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
      const ReceivedRows received =
          gpu_rank.dispatch(inputs[rank], {.variant = in_combine ? "auto" : variant, .fp8_input = wire != WireFormat::bf16});
      if (in_combine && variant == "combine.throughput")
        gpu_rank.combine_reduced(received, oracle, DType::bf16, variant);
      else if (in_combine)
        gpu_rank.combine(received, oracle, false, variant);
      const Status status = gpu_rank.take_status();
      // A rank that sends a wrong sum is found out by the rows' owner.
      const bool finds = epoch == 3 && rank == (in_combine ? 0 : 1);
      EXPECT_EQ(status.code, finds ? ErrorCode::internal : ErrorCode::ok) << describe(status);
      if (!finds) continue;
      EXPECT_EQ(status.rank, rank);
      EXPECT_EQ(status.token, 0);
      EXPECT_EQ(status.expected, 3);
      if (in_combine) {
        EXPECT_EQ(status.peer, 1);
        EXPECT_EQ(status.failures, 1);
      } else {
        EXPECT_EQ(status.failures, 2);  // the first row of each source
      }
      EXPECT_NE(describe(status).find("slot 0 of rank"), std::string::npos) << describe(status);
      EXPECT_NE(describe(status).find("epoch 3"), std::string::npos) << describe(status);
    }
  });
}

// Those that the GPU has, of a stage.
std::vector<std::string> variants_of(const std::string& stage) {
  std::vector<std::string> all{stage + ".latency", stage + ".copy_engine"};
  if (gpu::kDeviceType == DeviceType::cuda && gpu::compute_capability(0) >= 90) all.push_back(stage + ".throughput");
  return all;
}
TEST_F(ProtocolCheckGpu, NamesTheWrongRowOfADispatch) {
  for (const std::string& variant : variants_of("dispatch"))
    for (const WireFormat wire : {WireFormat::bf16, WireFormat::fp8_1x128})
      expect_the_flip("flip:dispatch:1:3", false, wire, variant);
}
TEST_F(ProtocolCheckGpu, NamesTheWrongRowOfACombine) {
  for (const std::string& variant : variants_of("combine"))
    expect_the_flip("flip:combine:1:3", true, WireFormat::bf16, variant);
}

TEST_F(ProtocolCheckGpu, RanksMustAgreeOnIt) {
  test::run_ranks(2, [](auto comm) {
    // Each rank's environment is read when its context is made.
    static std::atomic<int> turn{0};
    while (turn != comm->rank()) std::this_thread::yield();
    if (comm->rank() == 1) unsetenv("MIXLANE_CHECK");
    Context context({.device = test::device_of_rank(comm->rank()), .num_threads = 1});
    ++turn;
    try {
      Dispatcher dispatcher(context, comm, config_with(WireFormat::bf16, CombineWire::bf16));
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::config_mismatch);
      EXPECT_NE(std::string(error.what()).find("MIXLANE_CHECK"), std::string::npos) << error.what();
    }
  });
}

}  // namespace
}  // namespace mixlane
