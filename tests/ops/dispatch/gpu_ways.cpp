#include "ops/dispatch/gpu_ways.hpp"

namespace mixlane::test {

DispatcherConfig GpuWay::config() const {
  DispatcherConfig config = small_config();
  config.max_tokens = num_tokens + 3;
  config.combine_wire = wire;
  config.copy_engine = dispatch == "dispatch.copy_engine";
  config.num_multiprocessors = limited ? 6 : 0;
  return config;
}

ReceivedRows GpuWay::run_dispatch(GpuRank& rank, const Inputs& inputs, const RoutingHandle& replay) const {
  return rank.dispatch(inputs, {.variant = dispatch, .replay = replay});
}

std::vector<uint16_t> GpuWay::run_combine(GpuRank& rank, const ReceivedRows& received, const Oracle& oracle) const {
  if (reduced) return rank.combine_reduced(received, oracle, DType::f32, combine);
  return rank.combine(received, oracle, false, combine);
}

std::vector<Inputs> GpuWay::inputs(uint64_t seed, bool holes) const {
  Rng rng(seed);
  std::vector<Inputs> all;
  for (int r = 0; r < num_ranks; ++r) all.push_back(make_inputs(rng, config(), num_tokens + (r * 2 + 1) % 5 - 1, holes));
  return all;
}

void PrintTo(const GpuWay& way, std::ostream* out) { *out << way.name; }

std::vector<GpuWay> gpu_ways() {
  std::vector<GpuWay> ways{
      {.name = "lines_and_inbox", .num_ranks = 3},
      {.name = "flags_and_inbox", .num_tokens = 50, .num_ranks = 3},
      {.name = "flags_alone", .num_tokens = 50, .wire = CombineWire::f32},
      {.name = "few_multiprocessors", .num_tokens = 20, .wire = CombineWire::f64, .limited = true},
      {.name = "copy_engine",
       .dispatch = "dispatch.copy_engine",
       .combine = "combine.copy_engine",
       .num_tokens = 50,
       .wire = CombineWire::f32},
  };
  if (gpu::kDeviceType == DeviceType::cuda)
    ways.push_back({.name = "throughput",
                    .dispatch = "dispatch.throughput",
                    .combine = "combine.throughput",
                    .num_tokens = 50,
                    .wire = CombineWire::f32,
                    .reduced = true});
  return ways;
}

}  // namespace mixlane::test
