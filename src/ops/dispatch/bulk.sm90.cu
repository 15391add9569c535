// dispatch.throughput of sm_90 for rows that go as they are: one thread per block keeps the copy unit busy, so that a few
// multiprocessors fill the link.
#include <algorithm>

#include "gpu/launch.hpp"
#include "gpu/ptx/bulk_copy.cuh"
#include "ops/dispatch/dispatch.cuh"
#include "ops/dispatch/launchers.hpp"

namespace mixlane::exchange_gpu {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kMaxStages = 8;
constexpr int64_t kStageBytes = 200 * 1024;  // shared memory for all of them

// What RowSender does, by bulk copies through `stages` rows of shared memory.
class BulkSender {
 public:
  __device__ BulkSender(const DispatchKernelArgs& args, const Share& share, std::byte* rows, uint64_t* arrived,
                        uint32_t num_stages, SendShared& shared)
      : args_(args), share_(share), rows_(rows), arrived_(arrived), num_stages_(num_stages), shared_(shared) {
    begin_byte_ = share.first_of(args.num_packets) * 16;
    num_bytes_ = share.end_of(args.num_packets) * 16 - begin_byte_;
    pumps_ = threadIdx.x == kWave;  // the first thread of the second wave
  }

  __device__ void fetch_first() {
    if (!pumps_) return;
    for (uint32_t stage = 0; stage < num_stages_; ++stage) gpu::ptx::mbarrier_init(arrived_ + stage, 1);
    gpu::ptx::mbarrier_init_fence();
    for (uint32_t row = 0; row < num_stages_; ++row) load(row);
  }

  __device__ void send(uint32_t first, uint32_t end) {
    if (pumps_) pump(first, end);
    if (HardwareWave::index_in_block() != 1) send_tails(first, end);
  }

  __device__ void finish() {
    if (pumps_) gpu::ptx::wait_for_stores();
  }

 private:
  __device__ std::byte* stage(uint32_t row) const { return rows_ + row % num_stages_ * int64_t{args_.num_packets} * 16; }

  // Rows count from the block's first one.
  __device__ void load(uint32_t row) {
    const uint32_t token = share_.begin + row;
    if (token >= share_.end || num_bytes_ == 0) return;
    gpu::ptx::bulk_load(stage(row), args_.hidden.data + token * args_.hidden.stride + begin_byte_, num_bytes_,
                        arrived_ + row % num_stages_);
  }

  __device__ void pump(uint32_t first, uint32_t end) {
    if (num_bytes_ == 0) return;
#pragma unroll 1
    for (uint32_t token = first; token < end; ++token) {
      const uint32_t row = token - share_.begin;
      gpu::ptx::mbarrier_wait(arrived_ + row % num_stages_, row / num_stages_ & 1u);
      for (uint32_t to = 0; to < shared_.batch.num_targets[token - first]; ++to)
        gpu::ptx::bulk_store(shared_.batch.target[token - first][to] + begin_byte_, stage(row), num_bytes_);
      gpu::ptx::end_store_group();
      gpu::ptx::wait_until_read_but_one();
      if (row != 0) load(row - 1 + num_stages_);
    }
  }

  // The other waves: ids and weights, and the scales of fp8 input.
  __device__ void send_tails(uint32_t first, uint32_t end) const {
    if (!share_.last_part()) return;
    const uint32_t wave = HardwareWave::index_in_block();
    const uint32_t num_waves = kThreads / kWave - 1, turn = wave == 0 ? 0 : wave - 1;
    const uint32_t num_words = args_.num_scale_words + 2 * args_.num_topk;
#pragma unroll 1
    for (uint32_t token = first + turn; token < end; token += num_waves)
#pragma unroll 1
      for (uint32_t word = HardwareWave::lane(); word < num_words; word += kWave) {
        const uint32_t value = tail_word(args_, token, word);
        for (uint32_t to = 0; to < shared_.batch.num_targets[token - first]; ++to)
          reinterpret_cast<uint32_t*>(shared_.batch.target[token - first][to] + args_.payload_bytes)[word] = value;
      }
  }

  const DispatchKernelArgs& args_;
  const Share& share_;
  std::byte* rows_;
  uint64_t* arrived_;
  uint32_t num_stages_;
  SendShared& shared_;
  uint32_t begin_byte_;
  uint32_t num_bytes_;
  bool pumps_;
};

__global__ void __launch_bounds__(kThreads, 1)
    dispatch_throughput_bulk(const MIXLANE_GRID_CONSTANT DispatchKernelArgs args, uint32_t num_stages) {
  extern __shared__ __align__(128) std::byte rows[];
  __shared__ uint64_t arrived[kMaxStages];
  __shared__ DispatchShared shared;
  dispatch_rows(args, shared, false, [&](const Share& share) {
    BulkSender sender(args, share, rows, arrived, num_stages, shared.send);
    send_share(args, share, sender, shared.send);
  });
}

}  // namespace

bool takes_bulk(const DispatchKernelArgs& args) { return kStageBytes / (int64_t{args.num_packets} * 16) >= 3; }

void load_bulk_kernel() {
  gpu::max_resident_blocks(reinterpret_cast<const void*>(dispatch_throughput_bulk), kThreads, kStageBytes);
}

void launch_dispatch_bulk(const DispatchKernelArgs& args, const Budget& budget, Stream stream) {
  const int64_t row_bytes = int64_t{args.num_packets} * 16;
  const auto num_stages = static_cast<uint32_t>(std::min<int64_t>(kStageBytes / row_bytes, kMaxStages));
  const uint32_t most = std::clamp(static_cast<uint32_t>(budget.num_multiprocessors) - 1, 1u, kMaxSendBlocks);
  gpu::launch(dispatch_throughput_bulk,
              {.variant = "dispatch.throughput",
               .num_blocks = std::clamp(args.num_rows, 1u, most) + 1,
               .num_threads = kThreads,
               .shared_bytes = num_stages * row_bytes,
               .overlaps_previous = budget.overlaps},
              stream, args, num_stages);
}

}  // namespace mixlane::exchange_gpu
