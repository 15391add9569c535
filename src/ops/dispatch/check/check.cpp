#include "ops/dispatch/check/check.hpp"

#include "core/math.hpp"
#include "ops/quant/launchers.hpp"

namespace mixlane::exchange_gpu {
namespace {

// Lines and stamps, rounded up to 64 bytes; the partial sums come behind them.
int64_t words_bytes(const DispatcherConfig& config, int num_ranks) {
  const int64_t bytes = num_ranks * (static_cast<int64_t>(sizeof(CheckLine)) + int64_t{config.capacity} * 8);
  return ceil_div(bytes, int64_t{64}) * 64;
}

}  // namespace

int64_t ProtocolCheck::window_bytes(const GpuWindowLayout& layout, const DispatcherConfig& config, int num_ranks) {
  return words_bytes(config, num_ranks) + int64_t{num_ranks} * config.capacity * layout.records.partial_stride;
}

ProtocolCheck::ProtocolCheck(Device device, const GpuWindowLayout& layout, const DispatcherConfig& config, int num_ranks,
                             int rank, const Fault& fault)
    : device_(device),
      config_(config),
      payload_bytes_(static_cast<uint32_t>(layout.records.payload_bytes)),
      num_scales_(layout.records.num_scales),
      window_end_(layout.total_bytes),
      sums_(device, int64_t{4} * num_ranks * config.capacity),
      outputs_(device, int64_t{4} * config.max_tokens * config.hidden),
      ignored_(device, sizeof(Status)) {
  if (config.wire != WireFormat::bf16) {
    codes_ = gpu::Buffer(device, int64_t{config.max_tokens} * payload_bytes_);
    scales_ = gpu::Buffer(device, size_bytes(layout.records.scale_dtype, config.max_tokens * layout.records.num_scales));
  }
  args_.lines_at = layout.total_bytes;
  args_.stamps_at = args_.lines_at + num_ranks * static_cast<int64_t>(sizeof(CheckLine));
  args_.partials_at = layout.total_bytes + words_bytes(config, num_ranks);
  args_.sums = sums_.as<uint32_t>();
  args_.outputs = outputs_.as<std::byte>();
  args_.ignored = ignored_.as<Status>();
  args_.num_record_words = payload_bytes_ / 4 + static_cast<uint32_t>(layout.records.scale_words + 2 * config.num_topk);
  if (fault.flips && fault.rank == rank)
    args_.flip_epochs[static_cast<int>(fault.stage)] = static_cast<uint32_t>(fault.epoch);
  load_check_kernels(config.combine_wire);
  if (config.wire != WireFormat::bf16) load_quant_kernel();
}

// By quantising one row, as every kernel must be loaded before the group's first call.
void ProtocolCheck::load_quant_kernel() const {
  DispatchArgs args;
  args.hidden = ConstTensorView(outputs_.data(), DType::bf16, {1, config_.hidden}, device_);
  const gpu::OwnedStream stream(device_);
  gpu::fill(outputs_.data(), 0, outputs_.bytes(), stream.get());
  static_cast<void>(quantized(args, {}, {}, stream.get()));
  gpu::synchronize(stream.get());
}

void ProtocolCheck::before_dispatch(const DispatchKernelArgs& args, const Budget& budget, Stream stream) const {
  launch_poison(args.exchange, payload_bytes_, false, budget, stream);
}

void ProtocolCheck::before_combine(const CombineKernelArgs& args, const Budget& budget, Stream stream) const {
  // The caller may have made the reduced rows in place.
  const std::byte* const own = args.exchange.window.parts[args.exchange.window.rank];
  const bool in_window = args.rows.data >= own && args.rows.data < own + window_end_;
  launch_poison(args.exchange, payload_bytes_, in_window, budget, stream);
}

void ProtocolCheck::after_dispatch(const DispatchArgs& args, const DispatchKernelArgs& given, Payload payload,
                                   const Budget& budget, Stream stream) const {
  launch_check_dispatch(payload == Payload::copy ? given : quantized(args, given, budget, stream), args_, budget, stream);
}

// The rows as quant's own kernels make them.
DispatchKernelArgs ProtocolCheck::quantized(const DispatchArgs& args, const DispatchKernelArgs& given, const Budget& budget,
                                            Stream stream) const {
  const ScaleGroup group = scale_group(config_.wire);
  const bool by_row = group == ScaleGroup::row, fp4 = group == ScaleGroup::group_1x32;
  const int64_t rows = args.hidden.shape[0];
  QuantArgs quant;
  quant.input = args.hidden;
  quant.group = group;
  quant.output = TensorView(codes_.data(), wire_dtype(config_.wire), {rows, config_.hidden}, device_);
  quant.scales = by_row ? TensorView(scales_.data(), DType::f32, {rows}, device_)
                        : TensorView(scales_.data(), fp4 ? DType::e8m0 : DType::f32, {rows, num_scales_}, device_);
  quant.num_valid_rows = args.num_tokens;
  const quant_gpu::QuantKernelArgs kernel_args = quant_gpu::make_args(quant);
  if (by_row && rows > 0)
    quant_gpu::launch_tiles(kernel_args, DType::bf16, false, false, stream);
  else if (rows > 0)
    quant_gpu::launch_groups(kernel_args, DType::bf16, fp4, budget.num_multiprocessors, false, stream);
  DispatchKernelArgs sent = given;
  sent.hidden = {codes_.as<std::byte>(), payload_bytes_};
  sent.scales = scales_.data();
  sent.scale_row_stride = num_scales_;
  sent.scale_col_stride = 1;
  return sent;
}

void ProtocolCheck::after_combine(const CombineKernelArgs& args, bool partials_in_window, const Budget& budget,
                                  Stream stream) const {
  CheckArgs check = args_;
  check.partials_in_window = partials_in_window;
  launch_check_combine(args, config_.combine_wire, check, budget, stream);
}

}  // namespace mixlane::exchange_gpu
