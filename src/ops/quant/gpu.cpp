// The quantisation variants that run on GPUs: arguments resolved for the kernels, and the registry lines.
#include <algorithm>

#include "gpu/runtime.hpp"
#include "ops/quant/launchers.hpp"
#include "ops/quant/op.hpp"

namespace mixlane {
namespace quant_gpu {
namespace {

constexpr int64_t kMaxOctets = int64_t{1} << 31;

// Rows as kernels see them; an octet is eight values.
template <class Byte, class View>
Rows<Byte> rows_of(const View& view) {
  const int bits_per_value = bits(view.dtype);
  Rows<Byte> rows{static_cast<Byte*>(view.data), view.strides[0] * bits_per_value / 8, false};
  if (view.shape[0] <= 1) rows.stride = 0;
  rows.aligned = rows.begins_at(std::min(bits_per_value, 16));
  return rows;
}

template <class Value, class View>
Scales<Value> scales_of(const View& view) {
  return {view.data, view.strides[0], view.ndim > 1 ? view.strides[1] : 0};
}

}  // namespace

QuantKernelArgs make_args(const QuantArgs& args) {
  const ScaleTiles tiles(args.group, args.input.shape[0], args.input.shape[1]);
  QuantKernelArgs to;
  to.input = rows_of<const std::byte>(args.input);
  to.output = rows_of<std::byte>(args.output);
  to.scales = scales_of<void>(args.scales);
  to.num_valid_rows = args.num_valid_rows.as<int32_t>();
  to.num_rows = static_cast<uint32_t>(args.input.shape[0]);
  to.num_cols = static_cast<uint32_t>(args.input.shape[1]);
  to.independent_of_previous = args.independent_of_previous;
  to.by_tile_cols = gpu::Divider::by(static_cast<uint32_t>(std::max<int64_t>(tiles.cols, 1)));
  return to;
}

namespace {

uint32_t log2_of(int64_t tile) { return tile == 128 ? 7 : tile == 32 ? 5 : 0; }

DequantKernelArgs make_dequant_args(const DequantArgs& args) {
  const ScaleTiles tiles(args.group, args.input.shape[0], args.input.shape[1]);
  DequantKernelArgs to;
  to.input = rows_of<const std::byte>(args.input);
  to.output = rows_of<std::byte>(args.output);
  to.scales = scales_of<const void>(args.scales);
  to.num_rows = static_cast<uint32_t>(args.input.shape[0]);
  to.num_cols = static_cast<uint32_t>(args.input.shape[1]);
  to.row_shift = log2_of(tiles.tile_rows);
  to.col_shift = args.group == ScaleGroup::row ? 31 : log2_of(tiles.tile_cols);
  const int piece = dequant_piece(args.group == ScaleGroup::group_1x32);
  to.by_pieces = gpu::Divider::by(static_cast<uint32_t>((args.input.shape[1] + piece - 1) / piece));
  to.whole_pieces = to.input.begins_at(8) && to.output.begins_at(16);
  return to;
}

// ---------------------------------------------------------------------------------------------------------------------
// Why a variant does not take (valid) arguments; empty if it does

std::string refuse_large(const ConstTensorView& matrix) {
  const int64_t octets = matrix.shape[0] * ((matrix.shape[1] + 127) / 128 * 16);
  if (octets >= kMaxOctets) return fmt::format("{}; GPUs take fewer than {} values", to_string(matrix), 8 * kMaxOctets);
  return "";
}

bool takes_groups(ScaleGroup group) { return group == ScaleGroup::group_1x128 || group == ScaleGroup::group_1x32; }

std::string refuse_groups(const Context&, const QuantArgs& args) {
  return takes_groups(args.group) ? refuse_large(args.input) : "it takes group_1x128 and group_1x32";
}

std::string refuse_tiles(const Context&, const QuantArgs& args) {
  return takes_groups(args.group) ? "it takes row and block_128x128" : refuse_large(args.input);
}

std::string refuse_octets(const Context&, const DequantArgs& args) { return refuse_large(args.input); }

// ---------------------------------------------------------------------------------------------------------------------

bool can_overlap(Device device) { return device.type == DeviceType::cuda && gpu::compute_capability(device.index) >= 90; }

void run_groups(Context& context, const QuantArgs& args, Stream stream) {
  if (args.input.num_values() == 0) return;
  const Device device = context.device();
  const gpu::DeviceGuard guard(device);
  launch_groups(make_args(args), args.input.dtype, args.group == ScaleGroup::group_1x32,
                gpu::num_multiprocessors(device.index), can_overlap(device), stream);
}

void run_tiles(Context& context, const QuantArgs& args, Stream stream) {
  // Rows without columns have scales nevertheless.
  if (args.scales.num_values() == 0) return;
  const gpu::DeviceGuard guard(context.device());
  launch_tiles(make_args(args), args.input.dtype, args.group == ScaleGroup::block_128x128, can_overlap(context.device()),
               stream);
}

void run_octets(Context& context, const DequantArgs& args, Stream stream) {
  if (args.input.num_values() == 0) return;
  const gpu::DeviceGuard guard(context.device());
  launch_octets(make_dequant_args(args), args.output.dtype, args.group == ScaleGroup::group_1x32,
                can_overlap(context.device()), stream);
}

}  // namespace
}  // namespace quant_gpu

std::span<const Variant<QuantArgs>> quant_gpu_variants() {
  using namespace quant_gpu;
  static constexpr Variant<QuantArgs> kVariants[] = {
      {{"quant.groups", "the lanes of a group hold it in registers; 1x128 and 1x32", gpu::kDeviceType},
       refuse_groups,
       run_groups},
      {{"quant.tiles", "a block per row or 128x128 tile, held in registers", gpu::kDeviceType}, refuse_tiles, run_tiles},
  };
  return kVariants;
}

std::span<const Variant<DequantArgs>> dequant_gpu_variants() {
  using namespace quant_gpu;
  static constexpr Variant<DequantArgs> kVariants[] = {
      {{"dequant.octets", "a wave per piece of a row; lanes exchange codes, so that they load and store large pieces",
        gpu::kDeviceType},
       refuse_octets,
       run_octets},
  };
  return kVariants;
}

}  // namespace mixlane
