// Weights on their way to a GPU: each thread fills its pinned blocks in turn, the copy engine empties them.
#include <algorithm>
#include <optional>
#include <vector>

#include "gpu/memory_budget.hpp"
#include "gpu/registered.hpp"
#include "gpu/runtime.hpp"
#include "io/weight_memory.hpp"
#include "io/workers.hpp"

namespace mixlane {
namespace {

constexpr int kNumLanes = 2;  // one converts while the other fetches
constexpr double kGiga = 1e9;

// Bytes of a block that follow each other on the device.
struct BlockPart {
  std::byte* to = nullptr;
  int64_t bytes = 0;
  const void* allocation = nullptr;
};

// One copy must not go on from one allocation into the next.
void append(std::vector<BlockPart>& parts, const BlockPart& next) {
  if (!parts.empty() && next.allocation && parts.back().allocation == next.allocation &&
      parts.back().to + parts.back().bytes == next.to)
    parts.back().bytes += next.bytes;
  else
    parts.push_back(next);
}

// Chunks that share a block: [first, first + count) of a list.
struct BlockLoad {
  size_t first = 0;
  size_t count = 0;
};

// Neighbours share a block as long as they fit: scales of an expert are too small for a copy of their own.
std::vector<BlockLoad> group_by_block(const std::vector<Chunk>& chunks, int64_t block_bytes) {
  std::vector<BlockLoad> loads;
  int64_t used = 0;
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (loads.empty() || used + chunks[i].bytes() > block_bytes) {
      loads.push_back({i, 0});
      used = 0;
    }
    used += chunks[i].bytes();
    ++loads.back().count;
  }
  return loads;
}

class GpuWeightMemory final : public WeightMemory {
 public:
  GpuWeightMemory(const Context& context, const Staging& staging)
      : staging_(staging), device_(context.device()), num_workers_(std::min(context.num_threads(), staging.max_threads)) {
    for (int i = 0; i < kNumLanes; ++i)
      lanes_.push_back({Context({.device = device_, .num_threads = context.num_threads()}), gpu::OwnedStream(device_)});
  }
  // The copies read the blocks.
  ~GpuWeightMemory() override { quiesce(); }

  void require(int64_t bytes, std::string_view what) const override;
  OwnedTensor make(std::string_view what, DType dtype, std::initializer_list<int64_t> shape) override;
  int num_lanes() const override { return kNumLanes; }
  void fetch(const std::vector<Transfer>& transfers, int lane) override;
  void finish() override {
    for (const Lane& lane : lanes_) gpu::synchronize(lane.stream.get());
  }
  Context& context(int lane) override { return lanes_[static_cast<size_t>(lane)].context; }
  Stream stream(int lane) const override { return lanes_[static_cast<size_t>(lane)].stream.get(); }
  int64_t batch_bytes() const override { return staging_.batch_bytes; }

 private:
  struct Lane {
    Context context;  // conversions must not share an arena with each other, nor with what the caller has under way
    gpu::OwnedStream stream;
  };
  void make_blocks();
  std::byte* block(int worker, int turn) const {
    return ring_->data() + (int64_t{worker} * staging_.blocks_per_thread + turn) * staging_.block_bytes;
  }
  void fill_blocks(int worker, const std::vector<Chunk>& chunks, const std::vector<BlockLoad>& loads, Stream stream,
                   WorkQueue& queue);
  void quiesce() noexcept;

  Staging staging_;
  Device device_;
  int num_workers_;
  std::vector<Lane> lanes_;
  std::optional<gpu::RegisteredBuffer> ring_;
  std::vector<gpu::Event> copied_;  // a block's last copy
};

void GpuWeightMemory::require(int64_t bytes, std::string_view what) const {
  const gpu::MemoryBudget budget = gpu::memory_budget(device_.index);
  if (bytes > budget.free_bytes)
    fail(ErrorCode::out_of_memory,
         "{} need {:.2f} GB of {}:{}, which has {:.2f} GB free of {:.2f}; use more ranks, a smaller quantisation (mxfp4 "
         "takes "
         "about a quarter of bf16), or end what else runs there",
         what, static_cast<double>(bytes) / kGiga, name(device_.type), device_.index,
         static_cast<double>(budget.free_bytes) / kGiga, static_cast<double>(budget.total_bytes) / kGiga);
}

OwnedTensor GpuWeightMemory::make(std::string_view what, DType dtype, std::initializer_list<int64_t> shape) {
  OwnedTensor tensor;
  tensor.view = TensorView(nullptr, dtype, shape, device_);
  tensor.bytes = size_bytes(dtype, tensor.view.num_values());
  try {
    auto buffer = std::make_shared<gpu::Buffer>(device_, tensor.bytes);
    tensor.view.data = buffer->data();
    tensor.memory = std::shared_ptr<void>(buffer, buffer->data());
  } catch (const Error& error) {
    if (error.code() != ErrorCode::out_of_memory) throw;
    fail(ErrorCode::out_of_memory, "{}, {}: {}", what, to_string(tensor.view), error.what());
  }
  return tensor;
}

void GpuWeightMemory::make_blocks() {
  if (ring_) return;
  const gpu::DeviceGuard guard(device_);
  const int64_t num_blocks = int64_t{num_workers_} * staging_.blocks_per_thread;
  copied_.resize(static_cast<size_t>(num_blocks));
  ring_.emplace(num_blocks * staging_.block_bytes, num_workers_);
}

void GpuWeightMemory::fetch(const std::vector<Transfer>& transfers, int lane) {
  const std::vector<Chunk> chunks = cut(transfers, staging_.block_bytes);
  const std::vector<BlockLoad> loads = group_by_block(chunks, staging_.block_bytes);
  if (loads.empty()) return;
  make_blocks();
  const auto count = static_cast<int64_t>(loads.size());
  try {
    run_workers(static_cast<int>(std::min<int64_t>(num_workers_, count)), count,
                [&](int worker, WorkQueue& queue) { fill_blocks(worker, chunks, loads, stream(lane), queue); });
  } catch (...) {
    quiesce();
    throw;
  }
}

void GpuWeightMemory::fill_blocks(int worker, const std::vector<Chunk>& chunks, const std::vector<BlockLoad>& loads,
                                  Stream stream, WorkQueue& queue) {
  const gpu::DeviceGuard guard(device_);
  ChunkScratch scratch;
  std::vector<BlockPart> parts;
  int turn = 0;
  for (int64_t i = queue.next(); i >= 0; i = queue.next(), turn = (turn + 1) % staging_.blocks_per_thread) {
    gpu::Event& copied = copied_[static_cast<size_t>(worker * staging_.blocks_per_thread + turn)];
    copied.wait();
    std::byte* const begin = block(worker, turn);
    std::byte* at = begin;
    parts.clear();
    const BlockLoad& load = loads[static_cast<size_t>(i)];
    for (size_t c = load.first; c < load.first + load.count; ++c) {
      const Chunk& chunk = chunks[c];
      read_chunk(chunk, {at, at + chunk.way_bytes}, scratch);
      at += chunk.bytes();
      for (int way = 0; way < chunk.from.ways; ++way)
        append(parts, {chunk.into[static_cast<size_t>(way)], chunk.way_bytes, chunk.allocation});
    }
    const std::byte* from = begin;
    for (const BlockPart& part : parts) {
      gpu::copy(part.to, from, part.bytes, stream);
      from += part.bytes;
    }
    copied.record(stream);
  }
}

// What is under way may fail as well; the first failure has been kept.
void GpuWeightMemory::quiesce() noexcept {
  for (const Lane& lane : lanes_) {
    try {
      gpu::synchronize(lane.stream.get());
    } catch (const Error&) {
    }
  }
}

}  // namespace

std::unique_ptr<WeightMemory> open_gpu_weight_memory(const Context& context, const Staging& staging) {
  return std::make_unique<GpuWeightMemory>(context, staging);
}

}  // namespace mixlane
