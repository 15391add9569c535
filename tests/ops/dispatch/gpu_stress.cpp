// dispatch_gpu_stress [iterations] [ranks] [seed] [tokens]: random calls with random delays, every result compared with the
// oracle; each rank by variants of its own choice, from the host and from graphs. With an even seed rows and sums go with
// flags: under a limit of multiprocessors, with an f32 wire of combine. Multiples of three go without copy engines.
// MIXLANE_FAULT=jitter_<us> makes single blocks late as well.

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "core/error.hpp"
#include "core/format.hpp"
#include "ops/dispatch/gpu_rank.hpp"

namespace mixlane {
namespace {

using test::GpuCall;
using test::GpuRank;
using test::Inputs;
using test::Oracle;
using test::Rng;

DispatcherConfig stress_config(int max_tokens, uint64_t seed) {
  DispatcherConfig config;
  config.hidden = 72;
  config.num_topk = 4;
  config.num_experts = 23;
  config.max_tokens = max_tokens;
  config.copy_engine = seed % 3 != 0;
  if (seed % 2 == 0) {
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

// One rank. What is called, and with what, is the same on all ranks; by which variant, and when, is each rank's own.
class Player {
 public:
  Player(std::shared_ptr<Communicator> comm, uint64_t seed, int max_tokens)
      : config_(stress_config(max_tokens, seed)),
        gpu_rank_(comm, config_),
        rank_(comm->rank()),
        num_ranks_(comm->num_ranks()),
        bulk_(gpu::kDeviceType == DeviceType::cuda && gpu::compute_capability(0) >= 90),
        script_(seed),
        delays_(seed * 1000 + static_cast<uint64_t>(rank_)) {
    capture();
    comm->barrier();  // making a graph may wait for running kernels
  }

  void play(int64_t iteration) {
    const uint64_t what = script_() % 10;
    const std::vector<Inputs> inputs = test::make_all_inputs(script_(), config_, num_ranks_);
    const Oracle oracle{gpu_rank_.dispatcher().config(), inputs};
    delay();
    if (what < 2) {  // a replayed dispatch, sometimes followed by the same call made directly
      gpu_rank_.send(inputs[rank_], in_graphs_);
      dispatch_graph_.launch(gpu_rank_.stream());
      check_received(gpu_rank_.fetch(captured_), oracle, rank_, iteration);
      if (what == 0) return;
    }
    const ReceivedRows received = gpu_rank_.dispatch(inputs[rank_], {.variant = dispatch_variant()});
    check_received(received, oracle, rank_, iteration);
    if (what == 2) return;
    delay();
    for (int times = what == 3 ? 2 : 1; times > 0; --times) {
      const bool reduced = what == 6 || what == 7, with_addend = !reduced && what % 2 == 0;
      const std::vector<uint16_t> output =
          reduced ? combine_reduced(received, oracle) : gpu_rank_.combine(received, oracle, with_addend, combine_variant());
      require(output == oracle.output(rank_, with_addend), "an output", iteration);
    }
    if (what < 8) return;
    gpu_rank_.send_expert_rows(test::make_expert_rows(received, oracle, rank_));
    round_graph_.launch(gpu_rank_.stream());  // the same round once more
    require(gpu_rank_.fetch_output(inputs[rank_].num_tokens) == oracle.output(rank_, true), "a replayed output", iteration);
  }

  void end() {
    const Status status = gpu_rank_.take_status();
    if (!status.ok()) fail(status.code, "{}", describe(status));
  }

 private:
  void capture() {
    in_graphs_ = {.variant = dispatch_variant(), .count_on_device = true};
    const Device device = test::device_of_rank(rank_);
    dispatch_graph_ = gpu::Graph::capture(device, [&](Stream stream) {
      captured_ = gpu_rank_.dispatcher().dispatch(gpu_rank_.dispatch_args(0, in_graphs_), stream);
    });
    round_graph_ = gpu::Graph::capture(device, [&](Stream stream) {
      const ReceivedRows received = gpu_rank_.dispatcher().dispatch(gpu_rank_.dispatch_args(0, in_graphs_), stream);
      const int64_t all_pairs = int64_t{num_ranks_} * config_.max_tokens * config_.num_topk;
      CombineArgs args = gpu_rank_.combine_args(received.handle, config_.max_tokens, static_cast<int32_t>(all_pairs), true);
      args.variant = combine_variant();
      gpu_rank_.dispatcher().combine(args, stream);
    });
  }
  std::string_view dispatch_variant() {
    const uint64_t choice = delays_() % 3;
    if (choice == 0 && config_.copy_engine) return "dispatch.copy_engine";
    return choice == 1 && bulk_ ? "dispatch.throughput" : "dispatch.latency";
  }
  std::string_view combine_variant() {
    return delays_() % 3 == 0 && config_.copy_engine ? "combine.copy_engine" : "combine.latency";
  }
  std::vector<uint16_t> combine_reduced(const ReceivedRows& received, const Oracle& oracle) {
    const DType sums = config_.combine_wire == CombineWire::f32 ? DType::f32 : DType::bf16;
    const bool by_bulk = bulk_ && delays_() % 2 == 0;
    return gpu_rank_.combine_reduced(received, oracle, sums, by_bulk ? "combine.throughput" : combine_variant());
  }
  void delay() {
    if (delays_() % 16 == 0) test::random_delay(delays_, 200);
  }

  DispatcherConfig config_;
  GpuRank gpu_rank_;
  int rank_, num_ranks_;
  bool bulk_;
  Rng script_, delays_;
  GpuCall in_graphs_;
  ReceivedRows captured_;
  gpu::Graph dispatch_graph_, round_graph_;
};

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
        Player player(member, seed, max_tokens);
        for (int64_t i = 0; i < num_iterations; ++i) player.play(i);
        player.end();
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
