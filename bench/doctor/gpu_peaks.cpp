#include "doctor/gpu_peaks.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>

#include "core/error.hpp"
#include "doctor/gpu_kernels.hpp"
#include "gpu/peer.hpp"
#include "gpu/runtime.hpp"
#include "measure/clock.hpp"
#include "results/stamp.hpp"
#include "stats/stats.hpp"

namespace mixlane::bench {
namespace {

constexpr int kMinRepetitions = 4;
constexpr int kNumLaunches = 2000;
constexpr int kNumNodes = 1000;
constexpr double kMatrixUs = 10'000;        // of one repetition
constexpr double kClocksSettleUs = 50'000;  // until the clocks have answered to the power that the tensor cores draw

// A GPU with a stream and what times the work in it.
class Side {
 public:
  explicit Side(Device device) : device_(device), guard_(device), stream_(device) {}

  Device device() const { return device_; }
  Stream stream() const { return stream_.get(); }
  void begin(const std::function<void(Stream)>& work) {
    const gpu::DeviceGuard guard(device_);
    begin_.record(stream());
    work(stream());
    end_.record(stream());
  }
  double end_us() {
    end_.wait();
    return gpu::Event::elapsed_us(begin_, end_);
  }
  double time_us(const std::function<void(Stream)>& work) {
    begin(work);
    return end_us();
  }

 private:
  Device device_;
  gpu::DeviceGuard guard_;  // events belong to the device that is current when they are made
  gpu::OwnedStream stream_;
  gpu::Event begin_, end_;
};

// The shortest of the times that `once` returns, repeated for about `seconds`.
double shortest_us(double seconds, const std::function<double()>& once) {
  double best = once();  // warms up
  double spent = 0;
  for (int repetition = 0; repetition < kMinRepetitions || spent < seconds * 1e6; ++repetition) {
    const double us = once();
    best = std::min(best, us);
    spent += us;
  }
  return best;
}

// The median of the times that `once` returns, from kClocksSettleUs on: what the GPU sustains.
double sustained_us(double seconds, const std::function<double()>& once) {
  for (double spent = 0; spent < kClocksSettleUs;) spent += once();
  std::vector<double> times;
  for (double spent = 0; times.size() < kMinRepetitions || spent < seconds * 1e6; spent += times.back())
    times.push_back(once());
  return quantile(times, 0.5);
}

double gigabytes_per_second(double bytes, double us) { return bytes / us * 1e-3; }

// Runs a measurement; what it throws becomes the reason why there is none.
void attempt(const std::string& subject, Peaks& peaks, const std::function<void()>& measurement) {
  try {
    measurement();
  } catch (const Error& error) {
    peaks.skipped.push_back(fmt::format("{}: {}", subject, error.what()));
  }
}

void measure_memory(Side& side, const GpuPeakOptions& options, double seconds, Peaks& peaks) {
  const gpu::Buffer from(side.device(), options.bytes), to(side.device(), options.bytes), sink(side.device(), 4);
  launch_fill(from.data(), options.bytes, side.stream());
  const auto bytes = static_cast<double>(options.bytes);
  const auto rate = [&](double amount, const std::function<void(Stream)>& work) {
    return gigabytes_per_second(amount, shortest_us(seconds / 3, [&] { return side.time_us(work); }));
  };
  const double by_kernel =
      rate(2 * bytes, [&](Stream stream) { launch_copy(to.data(), from.data(), options.bytes, stream); });
  const double by_runtime =
      rate(2 * bytes, [&](Stream stream) { gpu::copy(to.data(), from.data(), options.bytes, stream); });
  peaks.copy_gbs = std::max(by_kernel, by_runtime);
  peaks.read_gbs = rate(bytes, [&](Stream stream) { launch_read(from.data(), options.bytes, sink.as<uint32_t>(), stream); });
}

double matrix_tflops(Side& side, DType dtype, double seconds) {
  if constexpr (!kHasTensorCoreKernel) {
    fail(ErrorCode::unsupported, "there is no kernel for AMD's matrix cores");
  } else {
    if (const int capability = gpu::compute_capability(side.device().index); capability != 90)
      fail(ErrorCode::unsupported, "there is a kernel for the tensor cores of sm_90 only, this GPU is sm_{}", capability);
    const int num_multiprocessors = gpu::num_multiprocessors(side.device().index);
    const gpu::Buffer sink(side.device(), num_multiprocessors * int64_t{sizeof(float)});
    const auto time_us = [&](int num_products) {
      return side.time_us(
          [&](Stream stream) { launch_tensor_cores(dtype, num_products, num_multiprocessors, sink.as<float>(), stream); });
    };
    constexpr int kFew = 1000;
    time_us(kFew);
    const int num_products = std::max(kFew, static_cast<int>(kFew * kMatrixUs / time_us(kFew)));
    const double us = sustained_us(seconds, [&] { return time_us(num_products); });
    return static_cast<double>(tensor_core_flops(dtype)) * num_products * num_multiprocessors / us * 1e-6;
  }
}

double launch_us(Side& side, double seconds) {
  return shortest_us(seconds,
                     [&] {
                       const int64_t begin = now_ns();
                       for (int i = 0; i < kNumLaunches; ++i) launch_nothing(side.stream());
                       gpu::synchronize(side.stream());
                       return static_cast<double>(now_ns() - begin) * 1e-3;
                     }) /
         kNumLaunches;
}

double graph_node_us(Side& side, double seconds) {
  const gpu::Graph graph = gpu::Graph::capture(side.device(), [&](Stream stream) {
    for (int i = 0; i < kNumNodes; ++i) launch_nothing(stream);
  });
  return shortest_us(seconds, [&] { return side.time_us([&](Stream stream) { graph.launch(stream); }); }) / kNumNodes;
}

// -----------------------------------------------------------------------------------------------------------------------
// Pairs

class Pair {
 public:
  Pair(Device first, Device second, int64_t bytes)
      : sides_{Side(first), Side(second)},
        from_{gpu::Buffer(first, bytes), gpu::Buffer(second, bytes)},
        to_{gpu::Buffer(first, bytes), gpu::Buffer(second, bytes)},
        bytes_(bytes) {
    for (int i = 0; i < 2; ++i) {
      const gpu::DeviceGuard guard(sides_[i].device());
      launch_fill(from_[i].data(), bytes, sides_[i].stream());
      gpu::synchronize(sides_[i].stream());
    }
  }

  // Both directions at once; the slower one counts.
  template <class Work>
  double rate(double seconds, const Work& work) {
    const double us = shortest_us(seconds, [&] {
      for (int i = 0; i < 2; ++i)
        sides_[i].begin([&](Stream stream) { work(from_[i].data(), from_[1 - i].data(), to_[1 - i].data(), stream); });
      const double first = sides_[0].end_us();
      return std::max(first, sides_[1].end_us());
    });
    return gigabytes_per_second(static_cast<double>(bytes_), us);
  }

  double flag_us() {
    constexpr uint32_t kRounds = 2000;
    constexpr uint64_t kLimitNs = 1'000'000'000;
    constexpr int64_t kWords = 4;  // the flag, and the time behind it
    const std::array<gpu::Buffer, 2> memory = {gpu::Buffer(sides_[0].device(), kWords * 4),
                                               gpu::Buffer(sides_[1].device(), kWords * 4)};
    for (uint32_t i = 0; i < 2; ++i)
      sides_[i].begin([&](Stream stream) {
        launch_ping_pong({.own = memory[i].as<uint32_t>(),
                          .others = memory[1 - i].as<uint32_t>(),
                          .elapsed_ns = memory[i].as<uint64_t>() + 1,
                          .limit_ns = kLimitNs,
                          .num_rounds = kRounds,
                          .begins = i == 0},
                         stream);
      });
    std::array<uint64_t, 2> elapsed_ns{};
    for (int i = 0; i < 2; ++i) {
      gpu::copy(&elapsed_ns[i], memory[i].as<uint64_t>() + 1, sizeof(uint64_t), sides_[i].stream());
      gpu::synchronize(sides_[i].stream());
    }
    if (elapsed_ns[0] == 0 || elapsed_ns[1] == 0)
      fail(ErrorCode::peer_timeout, "a flag between devices {} and {} did not arrive within {} ms", sides_[0].device().index,
           sides_[1].device().index, kLimitNs / 1'000'000);
    return static_cast<double>(std::max(elapsed_ns[0], elapsed_ns[1])) * 1e-3 / (2.0 * kRounds);
  }

 private:
  std::array<Side, 2> sides_;
  std::array<gpu::Buffer, 2> from_, to_;
  int64_t bytes_;
};

void keep_slower(double& slowest, double rate) { slowest = slowest == 0 ? rate : std::min(slowest, rate); }

void add_pair(const PeerPeaks& pair, const std::string& name, Peaks& peaks) {
  if (!pair.problem.empty()) {
    peaks.skipped.push_back(fmt::format("peers {}: {}", name, pair.problem));
    return;
  }
  keep_slower(peaks.peer_write_gbs, pair.write_gbs);
  keep_slower(peaks.peer_read_gbs, pair.read_gbs);
  keep_slower(peaks.copy_engine_gbs, pair.copy_engine_gbs);
  peaks.flag_us = std::max(peaks.flag_us, pair.flag_us);
}

void require_sensible(const GpuPeakOptions& options) {
  if (options.seconds <= 0 || options.bytes <= 0 || options.bytes % kStreamBytes != 0)
    fail(ErrorCode::invalid_argument, "GPU peaks of {} s over {} bytes: both must be positive, the bytes a multiple of {}",
         options.seconds, options.bytes, kStreamBytes);
}

}  // namespace

Peaks measure_gpu(Device device, const GpuPeakOptions& options) {
  require_sensible(options);
  constexpr int kNumParts = 5;
  const double seconds = options.seconds / kNumParts;
  Peaks peaks;
  peaks.measured_at = current_stamp();
  Side side(device);
  attempt("bandwidth", peaks, [&] { measure_memory(side, options, seconds, peaks); });
  attempt("bf16", peaks, [&] { peaks.bf16_tflops = matrix_tflops(side, DType::bf16, seconds); });
  attempt("fp8", peaks, [&] { peaks.fp8_tflops = matrix_tflops(side, DType::fp8_e4m3, seconds); });
  attempt("launch", peaks, [&] { peaks.launch_us = launch_us(side, seconds); });
  attempt("graph", peaks, [&] { peaks.graph_node_us = graph_node_us(side, seconds); });
  return peaks;
}

PeerPeaks measure_pair(Device first, Device second, const GpuPeakOptions& options) {
  require_sensible(options);
  PeerPeaks peaks;
  try {
    for (const auto& [device, peer] : {std::pair{first, second}, std::pair{second, first}}) {
      if (!gpu::can_access_peer(device, peer))
        fail(ErrorCode::unsupported, "device {} can't reach the memory of device {}", device.index, peer.index);
      gpu::enable_peer_access(device, peer);
    }
    Pair pair(first, second, options.bytes);
    const double seconds = options.seconds / 12;
    using Bytes = void*;
    peaks.write_gbs = pair.rate(
        seconds, [&](Bytes own, Bytes, Bytes target, Stream stream) { launch_copy(target, own, options.bytes, stream); });
    const gpu::Buffer sink(first, 4);
    peaks.read_gbs = pair.rate(seconds, [&](Bytes, Bytes source, Bytes, Stream stream) {
      launch_read(source, options.bytes, sink.as<uint32_t>(), stream);
    });
    peaks.copy_engine_gbs = pair.rate(
        seconds, [&](Bytes own, Bytes, Bytes target, Stream stream) { gpu::copy(target, own, options.bytes, stream); });
    peaks.flag_us = pair.flag_us();
  } catch (const Error& error) {
    peaks = {};
    peaks.problem = error.what();
  }
  return peaks;
}

Peaks measure_gpu_peaks(const std::vector<Device>& devices, const GpuPeakOptions& options) {
  if (devices.empty()) fail(ErrorCode::invalid_argument, "peaks of no GPU: name at least one");
  Peaks slowest = measure_gpu(devices.front(), options);
  for (size_t i = 1; i < devices.size(); ++i) {
    const Peaks peaks = measure_gpu(devices[i], options);
    for (double Peaks::*rate : {&Peaks::copy_gbs, &Peaks::read_gbs, &Peaks::bf16_tflops, &Peaks::fp8_tflops})
      slowest.*rate = std::min(slowest.*rate, peaks.*rate);
    for (double Peaks::*cost : {&Peaks::launch_us, &Peaks::graph_node_us})
      slowest.*cost = std::max(slowest.*cost, peaks.*cost);
    for (const std::string& reason : peaks.skipped)
      if (std::find(slowest.skipped.begin(), slowest.skipped.end(), reason) == slowest.skipped.end())
        slowest.skipped.push_back(reason);
  }
  if (devices.size() == 1) slowest.skipped.push_back("peers: one GPU has no peer");
  for (size_t i = 0; i < devices.size(); ++i)
    for (size_t j = i + 1; j < devices.size(); ++j)
      add_pair(measure_pair(devices[i], devices[j], options), fmt::format("{} and {}", devices[i].index, devices[j].index),
               slowest);
  slowest.skipped.push_back("exchange: GPUs do not exchange through host memory");
  slowest.skipped.push_back("f32: no stage multiplies in f32 on GPUs");
  return slowest;
}

}  // namespace mixlane::bench
