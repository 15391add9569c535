// expert_major on a GPU: what the CPU's test demands, and one graph for changing slots.
#include "support/gpu.hpp"

#include "ops/expert_major/sorted_case.hpp"
#include "support/errors.hpp"

namespace mixlane {
namespace {

using test::SortedCase;

class ExpertMajorGpu : public test::GpuTest {};

template <class T>
gpu::Buffer upload(const std::vector<T>& values, Stream stream) {
  gpu::Buffer buffer(test::gpu_device(), static_cast<int64_t>(values.size() * sizeof(T)));
  gpu::copy(buffer.data(), values.data(), static_cast<int64_t>(values.size() * sizeof(T)), stream);
  return buffer;
}

TEST_F(ExpertMajorGpu, EveryPairsRowLiesInItsSlot) {
  Context context({.device = test::gpu_device(), .num_threads = 1});
  const gpu::OwnedStream stream(test::gpu_device());
  for (const SortedCase& c : test::sorted_cases()) {
    std::vector<uint16_t> output(static_cast<size_t>(c.capacity * c.hidden), 0xffff);
    std::vector<float> scales(static_cast<size_t>(c.capacity * c.num_scales), -1.0f);
    const gpu::Buffer rows = upload(c.rows, stream.get()), row_scales = upload(c.scales, stream.get());
    const gpu::Buffer sorted = upload(c.sorted_rows, stream.get()), padded = upload(c.num_padded, stream.get());
    const gpu::Buffer to = upload(output, stream.get()), to_scales = upload(scales, stream.get());
    const ExpertMajorArgs args = c.args(rows.data(), row_scales.data(), sorted.data(), padded.data(), to.data(),
                                        to_scales.data(), test::gpu_device());
    const gpu::Graph graph = gpu::Graph::capture(test::gpu_device(), [&](Stream s) { expert_major(context, args, s); });
    graph.launch(stream.get());
    gpu::copy(output.data(), to.data(), static_cast<int64_t>(output.size() * 2), stream.get());
    gpu::copy(scales.data(), to_scales.data(), static_cast<int64_t>(scales.size() * 4), stream.get());
    gpu::synchronize(stream.get());
    EXPECT_EQ(output, c.expected_rows());
    EXPECT_EQ(scales, c.expected_scales());
  }
}

TEST_F(ExpertMajorGpu, RowsThatAreNotAlignedAreRefused) {
  Context context({.device = test::gpu_device(), .num_threads = 1});
  const SortedCase c(1, 7, 5, 20, 0, 16);
  const gpu::Buffer memory(test::gpu_device(), 1 << 16);
  const ExpertMajorArgs args =
      c.args(memory.data(), nullptr, memory.data(), memory.data(), memory.data(), nullptr, test::gpu_device());
  test::expect_error(ErrorCode::unsupported, {"40 bytes", "multiples of 16"}, [&] { expert_major(context, args); });
}

}  // namespace
}  // namespace mixlane
