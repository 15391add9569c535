#include "stage/checkpoint_experts.hpp"

#include <algorithm>
#include <numeric>

#include "core/format.hpp"
#include "gpu/registered.hpp"
#include "gpu/runtime.hpp"
#include "measure/clock.hpp"

namespace mixlane::bench {
namespace {

constexpr int kMaxLoads = 3;
constexpr double kEnoughLoading_s = 2;  // no further load begins after that

double seconds_since(int64_t begin_ns) { return static_cast<double>(now_ns() - begin_ns) * 1e-9; }

// One large block, again and again: what the copy engine can do. The best of a few.
double bare_copy_gbs(Device device) {
  constexpr int64_t kBytes = 256 << 20;
  constexpr int kRounds = 5;
  const gpu::DeviceGuard guard(device);
  const gpu::RegisteredBuffer from(kBytes, 4);
  const gpu::Buffer to(device, kBytes);
  const gpu::OwnedStream stream(device);
  gpu::Event begin, end;
  double best = 0;
  for (int i = 0; i < kRounds; ++i) {
    begin.record(stream.get());
    gpu::copy(to.data(), from.data(), kBytes, stream.get());
    end.record(stream.get());
    end.wait();
    best = std::max(best, static_cast<double>(kBytes) / gpu::Event::elapsed_us(begin, end) * 1e-3);
  }
  return best;
}

WeightsRequest request_of(const CheckpointSource& source, std::vector<int> experts) {
  return {source.model, source.format, std::move(experts), /*experts_only=*/true};
}

}  // namespace

CheckpointExperts::CheckpointExperts(Context& cpu, Context& device, CheckpointSource source)
    : cpu_(cpu), source_(std::move(source)) {
  std::vector<int> experts(static_cast<size_t>(source_.num_experts));
  std::iota(experts.begin(), experts.end(), 0);
  const WeightsRequest request = request_of(source_, experts);
  const int64_t begin_ns = now_ns();
  WeightLoader loader(device, source_.folder);
  figures_.open_s = seconds_since(begin_ns);
  const int64_t loading_ns = now_ns();
  do {
    loaded_ = {};  // room for the next
    const int64_t load_ns = now_ns();
    loaded_ = loader.load(request, source_.layer);
    const double seconds = seconds_since(load_ns);
    if (figures_.num_loads == 0) figures_.first_s = figures_.best_s = seconds;
    figures_.best_s = std::min(figures_.best_s, seconds);
    ++figures_.num_loads;
  } while (figures_.num_loads < kMaxLoads && seconds_since(loading_ns) < kEnoughLoading_s);
  figures_.read_bytes = loaded_.read_bytes;
  figures_.stored_bytes = loaded_.owned_bytes;
  figures_.copy_gbs = bare_copy_gbs(device.device());
}

ExpertWeights CheckpointExperts::on_host(int expert) {
  const auto found = on_host_.find(expert);
  if (found != on_host_.end()) return found->second.weights.experts;
  if (!host_loader_) host_loader_.emplace(cpu_, source_.folder);
  LayerWeights loaded = host_loader_->load(request_of(source_, {expert}), source_.layer);
  return on_host_.emplace(expert, std::move(loaded)).first->second.weights.experts;
}

std::string load_text(const CheckpointSource& source, const LoadFigures& figures) {
  const double read = static_cast<double>(figures.read_bytes) * 1e-9,
               stored = static_cast<double>(figures.stored_bytes) * 1e-9;
  const double rate = read / figures.best_s;
  return fmt::format(
      "weights of layer {}, {} experts in {}: {:.2f} GB read and {:.2f} GB stored in {:.3f} s, {:.1f} GB/s read, {:.0f} % "
      "of "
      "a bare copy's {:.1f} GB/s (best of {}; the first took {:.3f} s, opening the folder {:.3f} s)",
      source.layer, source.num_experts, name(source.format), read, stored, figures.best_s, rate,
      100 * rate / std::max(figures.copy_gbs, 1e-9), figures.copy_gbs, figures.num_loads, figures.first_s, figures.open_s);
}

}  // namespace mixlane::bench
