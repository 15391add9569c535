#include "io/weight_memory.hpp"

#include <algorithm>

#include "core/memory_budget.hpp"
#include "io/workers.hpp"

namespace mixlane {
namespace {

constexpr int64_t kChunkBytes = 4 << 20;

class HostWeightMemory final : public WeightMemory {
 public:
  explicit HostWeightMemory(Context& context) : context_(context) {}

  void require(int64_t bytes, std::string_view what) const override {
    const int64_t free = free_memory_bytes();
    if (bytes > free)
      fail(ErrorCode::out_of_memory,
           "{} need {} bytes, {} are free; use more ranks on more machines or a smaller quantisation (mxfp4 takes about a "
           "quarter of bf16)",
           what, bytes, free);
  }
  OwnedTensor make(std::string_view what, DType dtype, std::initializer_list<int64_t> shape) override {
    return make_host_tensor(what, dtype, shape);
  }

  int num_lanes() const override { return 1; }
  void fetch(const std::vector<Transfer>& transfers, int) override {
    const std::vector<Chunk> chunks = cut(transfers, kChunkBytes);
    const auto count = static_cast<int64_t>(chunks.size());
    run_workers(static_cast<int>(std::min<int64_t>(context_.num_threads(), count)), count, [&](int, WorkQueue& queue) {
      ChunkScratch scratch;
      for (int64_t i = queue.next(); i >= 0; i = queue.next()) {
        const Chunk& chunk = chunks[static_cast<size_t>(i)];
        read_chunk(chunk, chunk.into, scratch);
      }
    });
  }
  void finish() override {}
  int64_t batch_bytes() const override { return int64_t{64} << 20; }

  Context& context(int) override { return context_; }
  Stream stream(int) const override { return {}; }

 private:
  Context& context_;
};

}  // namespace

std::unique_ptr<WeightMemory> open_weight_memory(Context& context, const Staging& staging) {
  if (context.device().type == DeviceType::cpu) return std::make_unique<HostWeightMemory>(context);
  return open_gpu_weight_memory(context, staging);
}

}  // namespace mixlane
