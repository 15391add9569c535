// Dispatch and combine on GPUs against the oracle: ranks are threads, several of them on one GPU where there are fewer GPUs.
#include "support/gpu.hpp"

#include <gtest/gtest.h>

#include <cstring>

#include "ops/dispatch/gpu_rank.hpp"
#include "ops/dispatch/layout.hpp"
#include "ops/dispatch/op.hpp"
#include "support/errors.hpp"
#include "support/rank_threads.hpp"

namespace mixlane {
namespace {

using test::GpuCall;
using test::GpuRank;
using test::Inputs;
using test::make_all_inputs;
using test::make_inputs;
using test::Oracle;
using test::Rng;
using test::run_ranks;
using test::small_config;

bool has_bulk_copies() { return gpu::kDeviceType == DeviceType::cuda && gpu::compute_capability(0) >= 90; }

// A random sequence of calls, the same on all ranks: mostly dispatch and combine in turn, sometimes one of them twice, a
// replay, or a dispatch without a combine. Each rank takes variants of its own choice.
void play(std::shared_ptr<Communicator> comm, DispatcherConfig config, int num_rounds, uint64_t seed) {
  config.copy_engine = true;
  GpuRank gpu_rank(comm, config);
  const DispatcherConfig& full = gpu_rank.dispatcher().config();
  const int rank = comm->rank(), num_ranks = comm->num_ranks();
  Rng script(seed), delays(seed * 1000 + static_cast<uint64_t>(rank));
  for (int round = 0; round < num_rounds && !testing::Test::HasFailure(); ++round) {
    const uint64_t what = script() % 8;
    std::vector<Inputs> inputs = make_all_inputs(script(), config, num_ranks);
    const Oracle oracle{full, inputs};
    const uint64_t choice = delays() % 3;
    const bool by_copies = delays() % 2 == 0;  // combine
    const GpuCall call{.variant = choice == 0 && has_bulk_copies() ? "dispatch.throughput"
                                  : choice == 1                    ? "dispatch.copy_engine"
                                                                   : "dispatch.latency",
                       .count_on_device = script() % 2 == 0 && what != 1};  // a replay has as many rows
    SCOPED_TRACE("rank " + std::to_string(rank) + " of " + std::to_string(num_ranks) + " round " + std::to_string(round) +
                 " kind " + std::to_string(what));
    test::random_delay(delays, 300);
    ReceivedRows received = gpu_rank.dispatch(inputs[rank], call);
    test::expect_received(received, oracle, rank);
    if (what == 0) {
      inputs = make_all_inputs(script(), config, num_ranks);
      received = gpu_rank.dispatch(inputs[rank]);
      test::expect_received(received, oracle, rank);
    } else if (what == 1) {
      GpuCall again;
      again.replay = received.handle;
      Rng rows(script());
      for (Inputs& in : inputs) in.hidden = test::normal_bf16(rows, static_cast<int64_t>(in.hidden.size()));
      received = gpu_rank.dispatch(inputs[rank], again);
      test::expect_received(received, oracle, rank);
    } else if (what == 2) {
      continue;
    }
    const bool with_addend = script() % 2 == 0;
    // With the count on the device the output has rows that do not count.
    if (call.count_on_device && what > 1)
      received.handle =
          gpu_rank.dispatcher().dispatch(gpu_rank.dispatch_args(inputs[rank].num_tokens), gpu_rank.stream()).handle;
    test::random_delay(delays, 300);
    const char* const combine = by_copies ? "combine.copy_engine" : "combine.latency";
    EXPECT_EQ(gpu_rank.combine(received, oracle, with_addend, combine), oracle.output(rank, with_addend));
    if (what == 3) {
      EXPECT_EQ(gpu_rank.combine(received, oracle, with_addend, combine), oracle.output(rank, with_addend));
    }
    const Status status = gpu_rank.take_status();
    EXPECT_TRUE(status.ok()) << describe(status);
  }
}

class ExchangeGpu : public test::GpuTest {};
class ExchangeGpuRanks : public test::GpuTest, public testing::WithParamInterface<int> {};

TEST_P(ExchangeGpuRanks, RandomCallsGiveWhatTheOracleGives) {
  run_ranks(GetParam(), [](auto comm) { play(comm, small_config(), 25, 7 + static_cast<uint64_t>(comm->num_ranks())); });
}

TEST_P(ExchangeGpuRanks, PlacementsOfTheirOwn) {
  DispatcherConfig config = small_config();
  config.num_experts = 8;
  config.num_topk = 4;
  config.combine_wire = CombineWire::f32;
  for (int e = 0; e < config.num_experts; ++e) config.expert_rank.push_back((e * 5 + 1) % ((GetParam() + 1) / 2));
  run_ranks(GetParam(), [&](auto comm) { play(comm, config, 10, 3); });
}

// Two physical experts of each kind, on different ranks; which one a token goes to does not matter with exact sums.
TEST_P(ExchangeGpuRanks, ReplicasGiveWhatOneOfEachGives) {
  constexpr int kKinds = 7;  // of expert_value()
  const int num_ranks = GetParam();
  DispatcherConfig config = small_config();
  config.combine_wire = CombineWire::f64;
  config.num_experts = kKinds;
  const DispatcherConfig alone = completed(config, num_ranks);
  config.num_experts = 2 * kKinds;
  for (int e = 0; e < config.num_experts; ++e) config.expert_rank.push_back((e + e / kKinds) % num_ranks);
  run_ranks(num_ranks, [&](auto comm) {
    GpuRank gpu_rank(comm, config);
    for (uint64_t seed = 0; seed < 3; ++seed) {
      const std::vector<Inputs> logical = make_all_inputs(seed, alone, num_ranks);
      std::vector<Inputs> inputs = logical;
      for (Inputs& in : inputs)
        for (size_t pair = 0; pair < in.ids.size(); ++pair)
          if (in.ids[pair] >= 0 && pair / 3 % 2 == 1) in.ids[pair] += kKinds;
      const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
      const ReceivedRows received = gpu_rank.dispatch(inputs[comm->rank()]);
      test::expect_received(received, oracle, comm->rank());
      EXPECT_EQ(gpu_rank.combine(received, oracle, true), (Oracle{alone, logical}.output(comm->rank(), true)));
    }
    EXPECT_TRUE(gpu_rank.take_status().ok());
  });
}

TEST_P(ExchangeGpuRanks, MoreTokensThanBlocks) {
  DispatcherConfig config = small_config();
  config.hidden = 264;
  config.num_topk = 8;
  config.num_experts = 61;
  config.max_tokens = 700;
  run_ranks(GetParam(), [&](auto comm) { play(comm, config, 3, 5); });
}

INSTANTIATE_TEST_SUITE_P(Gpu, ExchangeGpuRanks, testing::Range(1, 9));

TEST_F(ExchangeGpu, LargeRows) {
  DispatcherConfig config = small_config();
  config.hidden = 7168;
  config.num_topk = 8;
  config.num_experts = 256;
  for (const int tokens : {1, 5, 40, 150}) {
    config.max_tokens = tokens;
    run_ranks(2, [&](auto comm) { play(comm, config, 3, static_cast<uint64_t>(tokens)); });
  }
}

TEST_F(ExchangeGpu, ManyExpertsPerToken) {
  DispatcherConfig config = small_config();
  config.num_topk = 32;
  config.num_experts = 40;
  config.max_tokens = 70;
  run_ranks(3, [&](auto comm) { play(comm, config, 6, 12); });
}

TEST_F(ExchangeGpu, WiresOfCombine) {
  for (const CombineWire wire : {CombineWire::bf16, CombineWire::fp8_1x128, CombineWire::f32, CombineWire::f64}) {
    DispatcherConfig config = small_config();
    config.hidden = 1032;
    config.combine_wire = wire;
    run_ranks(3, [&](auto comm) { play(comm, config, 8, 21); });
  }
}

TEST_F(ExchangeGpu, ReducedRows) {
  for (const CombineWire wire : {CombineWire::bf16, CombineWire::fp8_1x128, CombineWire::f32, CombineWire::f64})
    for (const DType dtype : {DType::bf16, DType::f32}) {
      if (wire == CombineWire::fp8_1x128 && dtype == DType::bf16) continue;  // rounded twice: no other wire gives that
      DispatcherConfig config = small_config();
      config.combine_wire = wire;
      config.max_tokens = 600;  // about as often more as fewer than an inbox takes
      const bool as_it_is =
          (wire == CombineWire::bf16 && dtype == DType::bf16) || (wire == CombineWire::f32 && dtype == DType::f32);
      // Rows reduced to bf16 give what a bf16 wire gives; an f64 wire of f32 rows what an f32 wire gives.
      DispatcherConfig expected = config;
      if (dtype == DType::bf16) expected.combine_wire = CombineWire::bf16;
      run_ranks(3, [&](auto comm) {
        GpuRank gpu_rank(comm, config);
        DispatcherConfig full = expected;
        full.expert_rank = gpu_rank.dispatcher().config().expert_rank;
        full.capacity = gpu_rank.dispatcher().config().capacity;
        for (uint64_t seed = 0; seed < 5; ++seed) {
          const std::vector<Inputs> inputs = make_all_inputs(seed, config, 3);
          const Oracle oracle{full, inputs};
          // Ranks need not agree about the variant.
          const bool by_bulk = has_bulk_copies() && as_it_is && (seed + static_cast<uint64_t>(comm->rank())) % 3 != 0;
          const ReceivedRows received = gpu_rank.dispatch(inputs[comm->rank()]);
          const std::vector<uint16_t> out =
              gpu_rank.combine_reduced(received, oracle, dtype, by_bulk ? "combine.throughput" : "combine.latency");
          if (wire == CombineWire::f64) continue;  // sums of f32 rows in f64: compared in WiresOfCombine's arithmetic only
          EXPECT_EQ(out, oracle.output(comm->rank(), false));
        }
      });
    }
}

void expect_fp8_rows(const ReceivedRows& received, const Oracle& oracle, int rank) {
  const int hidden = oracle.config.hidden;
  for (int s = 0; s < static_cast<int>(oracle.inputs.size()); ++s) {
    int64_t at = int64_t{s} * oracle.config.capacity;
    for (const int64_t t : oracle.tokens(s, rank)) {
      std::vector<uint8_t> codes;
      std::vector<float> scales;
      test::quantize_row(&oracle.inputs[s].hidden[t * hidden], hidden, oracle.config.wire, codes, scales);
      EXPECT_EQ(std::memcmp(received.rows.as<uint8_t>() + at * received.rows.strides[0], codes.data(), codes.size()), 0);
      EXPECT_EQ(std::memcmp(received.scales.as<float>() + at * received.scales.strides[0], scales.data(), 4 * scales.size()),
                0);
      ++at;
    }
  }
}

// Rows in a window on the host.
void expect_mxfp4_rows(const ReceivedRows& received, const Oracle& oracle, int rank) {
  const int hidden = oracle.config.hidden;
  EXPECT_EQ(received.scales.dtype, DType::e8m0);
  for (int s = 0; s < static_cast<int>(oracle.inputs.size()); ++s) {
    int64_t at = int64_t{s} * oracle.config.capacity;
    for (const int64_t t : oracle.tokens(s, rank)) {
      std::vector<uint8_t> codes, scales;
      test::quantize_mxfp4(&oracle.inputs[s].hidden[t * hidden], hidden, codes, scales);
      EXPECT_EQ(std::memcmp(received.rows.as<uint8_t>() + at * received.rows.strides[0] / 2, codes.data(), codes.size()), 0);
      EXPECT_EQ(std::memcmp(received.scales.as<uint8_t>() + at * received.scales.strides[0], scales.data(), scales.size()),
                0);
      ++at;
    }
  }
}

TEST_F(ExchangeGpu, Mxfp4Wire) {
  for (const int hidden : {32, 1120, 7168})
    for (const int tokens : {2, 30, 200}) {
      DispatcherConfig config = small_config();
      config.wire = WireFormat::mxfp4;
      config.hidden = hidden;
      config.max_tokens = tokens;
      config.copy_engine = true;
      run_ranks(2, [&](auto comm) {
        GpuRank gpu_rank(comm, config);
        const int rank = comm->rank();
        for (uint64_t seed = 0; seed < 4; ++seed) {
          const std::vector<Inputs> inputs = make_all_inputs(seed, config, 2);
          const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
          std::vector<GpuCall> calls = {{}, {.fp8_input = true}, {.variant = "dispatch.copy_engine", .fp8_input = true}};
          if (has_bulk_copies()) calls.push_back({.variant = "dispatch.throughput", .fp8_input = true});
          for (const GpuCall& call : calls) {
            SCOPED_TRACE(std::string(call.variant) + (call.fp8_input ? " of mxfp4" : " of bf16"));
            const ReceivedRows received = gpu_rank.dispatch(inputs[rank], call);
            test::expect_received(received, oracle, rank);
            expect_mxfp4_rows(received, oracle, rank);
          }
        }
      });
    }
}

TEST_F(ExchangeGpu, Fp8Wires) {
  for (const WireFormat wire : {WireFormat::fp8_1x128, WireFormat::fp8_row})
    for (const int hidden : {16, 1296, 7168})
      for (const int tokens : {2, 30, 200}) {
        DispatcherConfig config = small_config();
        config.wire = wire;
        config.hidden = hidden;
        config.max_tokens = tokens;
        run_ranks(2, [&](auto comm) {
          GpuRank gpu_rank(comm, config);
          const int rank = comm->rank();
          for (uint64_t seed = 0; seed < 4; ++seed) {
            const std::vector<Inputs> inputs = make_all_inputs(seed, config, 2);
            const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
            for (const bool fp8_input : {false, true})
              for (const char* variant : {"dispatch.latency", "dispatch.throughput"}) {
                if (variant[9] == 't' && (!fp8_input || !has_bulk_copies())) continue;
                const ReceivedRows received = gpu_rank.dispatch(inputs[rank], {.variant = variant, .fp8_input = fp8_input});
                test::expect_received(received, oracle, rank);
                expect_fp8_rows(received, oracle, rank);
              }
          }
        });
      }
}

TEST_F(ExchangeGpu, CountsAndCosts) {
  run_ranks(3, [](auto comm) {
    const DispatcherConfig config = small_config();
    GpuRank gpu_rank(comm, config);
    const std::vector<Inputs> inputs = make_all_inputs(17, config, 3);
    const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
    const ReceivedRows received = gpu_rank.dispatch(inputs[comm->rank()]);
    const DispatchCounts& seen = counts(received.handle);
    for (int peer = 0; peer < 3; ++peer) {
      EXPECT_EQ(seen.sent[peer], static_cast<int32_t>(oracle.tokens(comm->rank(), peer).size()));
      EXPECT_EQ(seen.received[peer], static_cast<int32_t>(oracle.tokens(peer, comm->rank()).size()));
    }
  });
}

// Rounds captured once and replayed with new data, mixed with eager calls.
TEST_F(ExchangeGpu, Graphs) {
  for (const int num_ranks : {2, 4})
    run_ranks(num_ranks, [&](auto comm) {
      DispatcherConfig config = small_config();
      config.max_tokens = 20;
      GpuRank gpu_rank(comm, config);
      const int rank = comm->rank();
      const GpuCall on_device{.count_on_device = true};
      ReceivedRows rows;
      const gpu::Graph dispatch = gpu::Graph::capture(test::device_of_rank(rank), [&](Stream stream) {
        rows = gpu_rank.dispatcher().dispatch(gpu_rank.dispatch_args(0, on_device), stream);
      });
      comm->barrier();  // making a graph may wait for running kernels
      for (uint64_t seed = 0; seed < 10; ++seed) {
        const std::vector<Inputs> inputs = make_all_inputs(seed, config, num_ranks);
        const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
        gpu_rank.send(inputs[rank], on_device);
        dispatch.launch(gpu_rank.stream());
        test::expect_received(gpu_rank.fetch(rows), oracle, rank);
        if (seed % 3 == 0) continue;  // replayed twice without a combine
        const ReceivedRows again = gpu_rank.dispatch(inputs[rank]);
        EXPECT_EQ(gpu_rank.combine(again, oracle, true), oracle.output(rank, true));
        rows.handle = again.handle;
      }
      EXPECT_TRUE(gpu_rank.take_status().ok());
    });
}

// A round captured for the largest batch: with few tokens sums come by the inbox, with many by flags, on each rank by
// itself.
TEST_F(ExchangeGpu, RoundsOfFewAndManyTokensInOneGraph) {
  DispatcherConfig config = small_config();
  config.hidden = 264;
  config.max_tokens = 700;
  for (const bool reduced : {false, true})
    run_ranks(2, [&](auto comm) {
      GpuRank gpu_rank(comm, config);
      Dispatcher& dispatcher = gpu_rank.dispatcher();
      const int rank = comm->rank();
      const GpuCall on_device{.count_on_device = true};
      ReceivedRows rows;
      const gpu::Graph dispatch = gpu::Graph::capture(test::device_of_rank(rank), [&](Stream stream) {
        rows = dispatcher.dispatch(gpu_rank.dispatch_args(0, on_device), stream);
      });
      const gpu::Graph combine = gpu::Graph::capture(test::device_of_rank(rank), [&](Stream stream) {
        dispatcher.combine(gpu_rank.combine_args(rows.handle, config.max_tokens, 700 * 2 * 3, true), stream);
      });
      comm->barrier();
      uint64_t seed = 0;
      for (const auto& [first, second] :
           {std::pair{5, 700}, {512, 513}, {0, 40}, {700, 600}, {1, 1}, {513, 3}, {130, 132}, {700, 0}}) {
        SCOPED_TRACE(testing::Message() << first << " and " << second);
        Rng rng(++seed);
        const std::vector<Inputs> inputs{make_inputs(rng, config, first, true), make_inputs(rng, config, second, true)};
        const Oracle oracle{dispatcher.config(), inputs};
        gpu_rank.send(inputs[rank], on_device);
        dispatch.launch(gpu_rank.stream());
        const ReceivedRows received = gpu_rank.fetch(rows);
        test::expect_received(received, oracle, rank);
        if (reduced) {  // the same from the host, some of it by what else would take it
          const std::string_view variant = has_bulk_copies() && seed % 2 == 0 ? "combine.throughput" : "auto";
          std::vector<uint16_t> output = gpu_rank.combine_reduced(received, oracle, DType::bf16, variant, config.max_tokens);
          output.resize(static_cast<size_t>(inputs[rank].num_tokens * config.hidden));
          EXPECT_EQ(output, oracle.output(rank, false));
          continue;
        }
        gpu_rank.send_expert_rows(test::make_expert_rows(received, oracle, rank));
        combine.launch(gpu_rank.stream());
        EXPECT_EQ(gpu_rank.fetch_output(inputs[rank].num_tokens), oracle.output(rank, true));
      }
      EXPECT_TRUE(gpu_rank.take_status().ok());
    });
}

TEST_F(ExchangeGpu, AMatrixThatIsNotAlignedIsRefused) {
  run_ranks(1, [](auto comm) {
    GpuRank gpu_rank(comm, small_config());
    DispatchArgs args = gpu_rank.dispatch_args(4);
    args.hidden.data = static_cast<const char*>(args.hidden.data) + 2;
    test::expect_error(ErrorCode::unsupported, {"hidden", "2 bytes off", "16 bytes"},
                       [&] { gpu_rank.dispatcher().dispatch(args, gpu_rank.stream()); });
  });
}

TEST_F(ExchangeGpu, ALimitOfMultiprocessors) {
  for (const int limit : {1, 2, 5}) {
    DispatcherConfig config = small_config();
    config.num_multiprocessors = limit;
    config.max_tokens = 100;
    run_ranks(2, [&](auto comm) { play(comm, config, 6, 31); });
  }
}

TEST_F(ExchangeGpu, WhatBulkCopiesDoNotTakeIsRefused) {
  run_ranks(1, [](auto comm) {
    DispatcherConfig config = small_config();
    config.hidden = 128;
    config.wire = WireFormat::fp8_1x128;
    GpuRank gpu_rank(comm, config);
    DispatchArgs args = gpu_rank.dispatch_args(4);
    args.variant = "dispatch.throughput";
    if (gpu::kDeviceType == DeviceType::cuda)
      test::expect_error(ErrorCode::unsupported, {"dispatch.throughput", "dispatch.latency"},
                         [&] { gpu_rank.dispatcher().dispatch(args, gpu_rank.stream()); });
    // Experts' rows.
    const std::vector<Inputs> inputs = make_all_inputs(1, config, 1);
    const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
    const ReceivedRows received = gpu_rank.dispatch(inputs[0]);
    if (gpu::kDeviceType == DeviceType::cuda)
      test::expect_error(ErrorCode::unsupported, {"combine.throughput", "combine.latency"},
                         [&] { gpu_rank.combine(received, oracle, false, "combine.throughput"); });
  });
}

TEST_F(ExchangeGpu, WindowBytes) {
  // All rounded up to 128: row = 64 + 16, partial row and the inbox's = 64, what lies before; lines take 256 for a row.
  DispatcherConfig config = small_config();
  config.hidden = 32;
  config.num_topk = 2;
  config.max_tokens = 5;
  EXPECT_EQ(Dispatcher::window_bytes(config, 4, gpu::kDeviceType), 64 + 4 * (64 + 4096 + 5 * (16 + 3 * 128 + 256)));
  config.copy_engine = true;  // what this takes no peer reaches
  EXPECT_EQ(Dispatcher::window_bytes(config, 4, gpu::kDeviceType), 64 + 4 * (64 + 4096 + 5 * (16 + 3 * 128 + 256)));
  config.copy_engine = false;
  config.max_tokens = 600;
  EXPECT_EQ(Dispatcher::window_bytes(config, 4, gpu::kDeviceType),
            4 * (64 + 4096 + 600 * (16 + 256) + 512 * 128 + 32 * 256));
  config.combine_wire = CombineWire::fp8_1x128;
  EXPECT_EQ(Dispatcher::window_bytes(config, 4, gpu::kDeviceType), 4 * (64 + 4096 + 600 * (16 + 256) + 32 * 256));
  config.early_rows = true;
  EXPECT_EQ(Dispatcher::window_bytes(config, 4, gpu::kDeviceType), 4 * (64 + 4096 + 600 * (16 + 256)));
}

}  // namespace
}  // namespace mixlane
