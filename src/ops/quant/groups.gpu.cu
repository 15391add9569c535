#include "gpu/launch.hpp"
#include "ops/quant/kernels.cuh"
#include "ops/quant/launchers.hpp"

namespace mixlane::quant_gpu {
namespace {

using Kernel = void (*)(QuantKernelArgs);

// mxfp4 with scales whose columns are contiguous: a wave takes this many rows of two groups.
template <DType kType>
constexpr uint32_t kLog2Down = kType == DType::f32 ? 2 : 3;

template <DType kType, uint32_t kHeld>
Kernel kernel_for(bool fp4) {
  return fp4 ? quant_groups<E2m1Scale, kType, 4, kHeld, 0> : quant_groups<E4m3Scale, kType, 16, kHeld, 0>;
}

template <DType kType, uint32_t kHeld>
Kernel whole_kernel_for(bool fp4, bool down) {
  if (down) return quant_groups_whole<E2m1Scale, kType, 4, kHeld, kLog2Down<kType>>;
  return fp4 ? quant_groups_whole<E2m1Scale, kType, 4, kHeld, 0> : quant_groups_whole<E4m3Scale, kType, 16, kHeld, 0>;
}

// Whole groups whose codes can be stored two octets at a time.
bool has_whole_groups(const QuantKernelArgs& args, bool fp4) {
  return args.input.aligned && args.num_cols == args.by_tile_cols.divisor * (fp4 ? 32 : 128) &&
         args.output.begins_at(fp4 ? 8 : 16);
}

void launch(Kernel kernel, const QuantKernelArgs& args, uint32_t num_threads, bool overlap, Stream stream) {
  gpu::launch(kernel,
              {.variant = "quant.groups",
               .num_blocks = (num_threads + kGroupThreads - 1) / kGroupThreads,
               .num_threads = kGroupThreads,
               .overlaps_previous = overlap},
              stream, args);
}

template <DType kType>
void launch_for(const QuantKernelArgs& args, bool fp4, int num_multiprocessors, bool overlap, Stream stream) {
  const uint32_t row_octets = args.by_tile_cols.divisor * (fp4 ? 4 : 16);
  // Several rows per thread once that leaves every multiprocessor full; the most when it is filled twice.
  const uint32_t full = static_cast<uint32_t>(num_multiprocessors) * 2048 / row_octets;
  const bool down = fp4 && args.scales.row_stride == 1 && args.scales.col_stride != 1;
  const auto launch_rows = [&](Kernel kernel, uint32_t held, uint32_t row_threads, bool goes_down = false) {
    const uint32_t log2_down = goes_down ? kLog2Down<kType> : 0;
    const uint32_t band = held << log2_down;
    launch(kernel, args, ((args.num_rows + band - 1) / band << log2_down) * row_threads, overlap, stream);
  };
  if constexpr (kType == DType::f32) {
    // Two rows are enough, but mxfp4 stores so little that four are better.
    if (fp4 && args.num_rows >= full * 4) {
      const Kernel kernel = down ? quant_groups<E2m1Scale, kType, 4, 4, kLog2Down<kType>> : kernel_for<kType, 4>(true);
      return launch_rows(kernel, 4, row_octets, down);
    }
    if (!fp4 && args.num_rows >= full * 2) return launch_rows(kernel_for<kType, 2>(false), 2, row_octets);
  } else {
    if (has_whole_groups(args, fp4) && args.num_rows >= full) {
      const bool two = fp4 && args.num_rows >= full * 3;
      const Kernel kernel = two ? whole_kernel_for<kType, 2>(fp4, down) : whole_kernel_for<kType, 1>(fp4, down);
      return launch_rows(kernel, two ? 2 : 1, row_octets / 2, down);
    }
    if (args.num_rows >= full * 8) return launch_rows(kernel_for<kType, 4>(fp4), 4, row_octets);
    if (args.num_rows >= full * 2) return launch_rows(kernel_for<kType, 2>(fp4), 2, row_octets);
  }
  launch_rows(kernel_for<kType, 1>(fp4), 1, row_octets);
}

}  // namespace

void launch_groups(const QuantKernelArgs& args, DType input, bool fp4, int num_multiprocessors, bool overlap,
                   Stream stream) {
  if (input == DType::f32) return launch_for<DType::f32>(args, fp4, num_multiprocessors, overlap, stream);
  if (input == DType::bf16) return launch_for<DType::bf16>(args, fp4, num_multiprocessors, overlap, stream);
  launch_for<DType::f16>(args, fp4, num_multiprocessors, overlap, stream);
}

}  // namespace mixlane::quant_gpu
