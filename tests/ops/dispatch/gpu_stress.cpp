// dispatch_gpu_stress [iterations] [ranks] [seed] [tokens]: random calls with random delays, every result compared with the
// oracle; each rank by variants of its own choice. With an even seed rows and sums go with flags: under a limit of
// multiprocessors, with an f32 wire of combine. MIXLANE_FAULT=jitter_<us> makes single blocks late as well.
#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "core/error.hpp"
#include "ops/dispatch/gpu_rank.hpp"

namespace mixlane {
namespace {

using test::GpuCall;
using test::GpuRank;
using test::Inputs;
using test::Oracle;
using test::Rng;

DispatcherConfig stress_config(int max_tokens, bool with_flags) {
  DispatcherConfig config;
  config.hidden = 72;
  config.num_topk = 4;
  config.num_experts = 23;
  config.max_tokens = max_tokens;
  if (with_flags) {
    config.num_multiprocessors = 12;
    config.combine_wire = CombineWire::f32;
  }
  return config;
}

void require(bool condition, std::string_view what, int64_t iteration) {
  if (!condition) fail(ErrorCode::internal, "{} is wrong in iteration {}", what, iteration);
}

void check_received(const ReceivedRows& received, const Oracle& oracle, int rank, int64_t iteration) {
  const DispatcherConfig& config = oracle.config;
  for (int s = 0; s < static_cast<int>(oracle.inputs.size()); ++s) {
    const Inputs& in = oracle.inputs[s];
    const std::vector<int64_t> tokens = oracle.tokens(s, rank);
    require(received.recv_count.as<int32_t>()[s] == static_cast<int32_t>(tokens.size()), "a count", iteration);
    for (size_t j = 0; j < tokens.size(); ++j) {
      const int64_t at = int64_t{s} * config.capacity + static_cast<int64_t>(j), t = tokens[j];
      const auto same = [&](const TensorView& view, const void* right, int64_t width) {
        return std::memcmp(view.as<std::byte>() + size_bytes(view.dtype, at * view.strides[0]), right,
                           static_cast<size_t>(size_bytes(view.dtype, width))) == 0;
      };
      require(same(received.rows, &in.hidden[t * config.hidden], config.hidden), "a row", iteration);
      require(same(received.topk_ids, &in.ids[t * config.num_topk], config.num_topk), "a row's ids", iteration);
      require(same(received.topk_weights, &in.weights[t * config.num_topk], config.num_topk), "a row's weights", iteration);
    }
  }
}

// What all ranks do alike; delays are each rank's own.
void play(std::shared_ptr<Communicator> comm, int64_t num_iterations, uint64_t seed, int max_tokens) {
  const DispatcherConfig config = stress_config(max_tokens, seed % 2 == 0);
  GpuRank gpu_rank(comm, config);
  const int rank = comm->rank(), num_ranks = comm->num_ranks();
  const bool bulk = gpu::kDeviceType == DeviceType::cuda && gpu::compute_capability(0) >= 90;
  // The replayed graph's too.
  const GpuCall on_device{.variant = bulk && rank % 2 == 1 ? "dispatch.throughput" : "dispatch.latency",
                          .count_on_device = true};
  ReceivedRows captured;
  const gpu::Graph graph = gpu::Graph::capture(test::device_of_rank(rank), [&](Stream stream) {
    captured = gpu_rank.dispatcher().dispatch(gpu_rank.dispatch_args(0, on_device), stream);
  });
  comm->barrier();
  Rng script(seed), delays(seed * 1000 + static_cast<uint64_t>(rank));
  for (int64_t i = 0; i < num_iterations; ++i) {
    const uint64_t what = script() % 8;
    const std::vector<Inputs> inputs = test::make_all_inputs(script(), config, num_ranks);
    const Oracle oracle{gpu_rank.dispatcher().config(), inputs};
    if (delays() % 16 == 0) test::random_delay(delays, 200);
    if (what < 2) {  // a replayed graph, sometimes followed by the same call made directly
      gpu_rank.send(inputs[rank], on_device);
      graph.launch(gpu_rank.stream());
      check_received(gpu_rank.fetch(captured), oracle, rank, i);
      if (what == 0) continue;
    }
    const bool by_bulk = bulk && delays() % 2 == 0;
    const ReceivedRows received =
        gpu_rank.dispatch(inputs[rank], {.variant = by_bulk ? "dispatch.throughput" : "dispatch.latency"});
    check_received(received, oracle, rank, i);
    if (what == 2) continue;
    if (delays() % 16 == 0) test::random_delay(delays, 200);
    for (int times = what == 3 ? 2 : 1; times > 0; --times) {
      if (what >= 6) {  // rows reduced before
        const char* const combine = bulk && delays() % 2 == 0 ? "combine.throughput" : "combine.latency";
        const DType sums = config.combine_wire == CombineWire::f32 ? DType::f32 : DType::bf16;
        require(gpu_rank.combine_reduced(received, oracle, sums, combine) == oracle.output(rank, false), "an output", i);
        continue;
      }
      require(gpu_rank.combine(received, oracle, what % 2 == 0) == oracle.output(rank, what % 2 == 0), "an output", i);
    }
  }
  const Status status = gpu_rank.take_status();
  if (!status.ok()) fail(status.code, "{}", describe(status));
}

int run(int64_t num_iterations, int num_ranks, uint64_t seed, int max_tokens) {
  std::string why;
  if (gpu::num_devices(&why) == 0) {
    fmt::print("skipped: {}\n", why);
    return 0;
  }
  std::atomic<int> num_failures{0};
  std::vector<std::thread> threads;
  const auto begin = std::chrono::steady_clock::now();
  for (auto& member : make_thread_group(num_ranks))
    threads.emplace_back([&, member] {
      member->set_deadline(std::chrono::seconds(5));
      try {
        play(member, num_iterations, seed, max_tokens);
      } catch (const std::exception& error) {
        fmt::print("rank {}: {}\n", member->rank(), error.what());
        ++num_failures;
      }
    });
  for (std::thread& thread : threads) thread.join();
  const auto seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  fmt::print("{} iterations on {} ranks with seed {}: {} failures, {:.1f} s\n", num_iterations, num_ranks, seed,
             num_failures.load(), seconds);
  return num_failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace mixlane

int main(int argc, char** argv) {
  const auto number = [&](int index, long otherwise) { return argc > index ? std::atol(argv[index]) : otherwise; };
  return mixlane::run(number(1, 300), static_cast<int>(number(2, 3)), static_cast<uint64_t>(number(3, 1)),
                      static_cast<int>(number(4, 12)));
}
