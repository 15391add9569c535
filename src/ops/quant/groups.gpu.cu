#include "gpu/launch.hpp"
#include "ops/quant/kernels.cuh"
#include "ops/quant/launchers.hpp"

namespace mixlane::quant_gpu {
namespace {

using Kernel = void (*)(QuantKernelArgs);

template <DType kType, uint32_t kHeld>
Kernel kernel_for(bool fp4) {
  return fp4 ? quant_groups<E2m1Scale, kType, 4, kHeld> : quant_groups<E4m3Scale, kType, 16, kHeld>;
}

template <DType kType, uint32_t kHeld>
Kernel whole_kernel_for(bool fp4) {
  return fp4 ? quant_groups_whole<E2m1Scale, kType, 4, kHeld> : quant_groups_whole<E4m3Scale, kType, 16, kHeld>;
}

// Whole groups whose codes can be stored two octets at a time.
bool has_whole_groups(const QuantKernelArgs& args, bool fp4) {
  const uintptr_t unit = fp4 ? 8 : 16;
  return args.input.aligned && args.num_cols == args.by_tile_cols.divisor * (fp4 ? 32 : 128) &&
         reinterpret_cast<uintptr_t>(args.output.data) % unit == 0 && args.output.stride % static_cast<int64_t>(unit) == 0;
}

void launch(Kernel kernel, const QuantKernelArgs& args, uint32_t num_threads, bool overlap, Stream stream) {
  gpu::launch(kernel,
              {.variant = "quant.groups",
               .num_blocks = (num_threads + kGroupThreads - 1) / kGroupThreads,
               .num_threads = kGroupThreads,
               .overlaps_previous = overlap},
              stream, args);
}

// Where the columns of scales are contiguous, a wave takes this many rows of two mxfp4 groups.
template <DType kType>
constexpr uint32_t kLog2RowsDown = kType == DType::f32 ? 2 : 3;

template <DType kType>
void launch_for(QuantKernelArgs args, bool fp4, int num_multiprocessors, bool overlap, Stream stream) {
  const uint32_t row_octets = args.by_tile_cols.divisor * (fp4 ? 4 : 16);
  // Several rows per thread once that leaves every multiprocessor full; the most when it is filled twice.
  const uint32_t full = static_cast<uint32_t>(num_multiprocessors) * 2048 / row_octets;
  if (args.scales.row_stride == 1 && args.scales.col_stride != 1 && args.num_rows >= full)
    args.log2_rows_down = kLog2RowsDown<kType>;
  const auto padded_rows = [&](uint32_t held) {
    const uint32_t band = held << args.log2_rows_down;
    return (args.num_rows + band - 1) / band << args.log2_rows_down;
  };
  const auto launch_held = [&](Kernel kernel, uint32_t held) {
    launch(kernel, args, padded_rows(held) * row_octets, overlap, stream);
  };
  if constexpr (kType != DType::f32) {
    if (has_whole_groups(args, fp4) && args.num_rows >= full) {
      const uint32_t held = fp4 && args.num_rows >= full * 3 ? 2 : 1;
      const Kernel kernel = held == 2 ? whole_kernel_for<kType, 2>(fp4) : whole_kernel_for<kType, 1>(fp4);
      return launch(kernel, args, padded_rows(held) * (row_octets / 2), overlap, stream);
    }
  }
  // Of f32 two rows fill a multiprocessor's loads; mxfp4 stores so little that four are better.
  constexpr bool kWide = kType == DType::f32;
  if (args.num_rows >= full * (kWide ? 4 : 8) && (fp4 || !kWide)) return launch_held(kernel_for<kType, 4>(fp4), 4);
  if (args.num_rows >= full * 2 && !(fp4 && kWide)) return launch_held(kernel_for<kType, 2>(fp4), 2);
  launch_held(kernel_for<kType, 1>(fp4), 1);
}

}  // namespace

void launch_groups(const QuantKernelArgs& args, DType input, bool fp4, int num_multiprocessors, bool overlap,
                   Stream stream) {
  if (input == DType::f32) return launch_for<DType::f32>(args, fp4, num_multiprocessors, overlap, stream);
  if (input == DType::bf16) return launch_for<DType::bf16>(args, fp4, num_multiprocessors, overlap, stream);
  launch_for<DType::f16>(args, fp4, num_multiprocessors, overlap, stream);
}

}  // namespace mixlane::quant_gpu
