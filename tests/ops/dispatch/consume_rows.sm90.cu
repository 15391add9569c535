#include "consume_rows.hpp"
#include "gpu/launch.hpp"
#include "mixlane/ready_rows.cuh"

namespace mixlane::test {
namespace {

constexpr uint32_t kThreads = 128;

struct Rows {
  ReadyRows ready;
  const uint32_t* payload;
  const uint32_t* ids;
  const uint32_t* weights;
  int64_t stride;  // of all three, in words
  int64_t capacity;
  uint32_t payload_words;
  uint32_t num_topk;
};

__device__ uint64_t now_ns() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

__device__ uint32_t sum_words(const uint32_t* words, uint32_t count, uint32_t first_index) {
  uint32_t sum = 0;
  for (uint32_t i = threadIdx.x; i < count; i += kThreads) sum += words[i] * (2 * (first_index + i) + 1);
  return sum;
}

__global__ void consume(Rows rows, uint32_t* sums, Consumed* consumed) {
  __shared__ RowRange range;
  __shared__ uint32_t num_blocks;
  __shared__ bool here;
  const int source = static_cast<int>(blockIdx.x);
  Consumed result{};
  if (threadIdx.x == 0) here = wait_for_num_blocks(rows.ready, source, num_blocks);
  __syncthreads();
  result.num_blocks = here ? num_blocks : 0;
  if (!here) ++result.num_missed;
  for (uint32_t block = 0; block < result.num_blocks; ++block) {
    __syncthreads();
    if (threadIdx.x == 0) here = wait_for_block(rows.ready, source, block, range);
    __syncthreads();
    if (!here) {
      ++result.num_missed;
      break;
    }
    if (range.begin != range.end) result.last_ns = now_ns();
    if (result.first_ns == 0) result.first_ns = result.last_ns;
    for (uint32_t row = range.begin; row < range.end; ++row) {
      const int64_t index = source * rows.capacity + row, at = index * rows.stride;
      const uint32_t sum = sum_words(rows.payload + at, rows.payload_words, 0) +
                           sum_words(rows.ids + at, rows.num_topk, rows.payload_words) +
                           sum_words(rows.weights + at, rows.num_topk, rows.payload_words + rows.num_topk);
      atomicAdd(sums + index, sum);
    }
    result.num_rows = range.end;
  }
  if (threadIdx.x == 0) consumed[source] = result;
}

}  // namespace

void launch_consumer(const ReceivedRows& received, uint32_t* sums, Consumed* consumed, Stream stream) {
  const auto words = [](const TensorView& view) { return static_cast<const uint32_t*>(view.data); };
  const int64_t num_ranks = received.recv_count.shape[0];
  Rows rows{};
  rows.ready = received.ready;
  rows.payload = words(received.rows);
  rows.ids = words(received.topk_ids);
  rows.weights = words(received.topk_weights);
  rows.stride = received.topk_ids.strides[0];
  rows.capacity = received.rows.shape[0] / num_ranks;
  rows.payload_words = static_cast<uint32_t>(received.rows.shape[1] / 2);  // bf16
  rows.num_topk = static_cast<uint32_t>(received.topk_ids.shape[1]);
  gpu::launch(consume, {.variant = "consume_rows", .num_blocks = static_cast<uint32_t>(num_ranks), .num_threads = kThreads},
              stream, rows, sums, consumed);
}

}  // namespace mixlane::test
