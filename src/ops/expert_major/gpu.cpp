// The variant that runs on GPUs: arguments resolved for the kernel, and the registry line.
#include <array>

#include "gpu/runtime.hpp"
#include "ops/expert_major/launchers.hpp"
#include "ops/expert_major/op.hpp"

namespace mixlane {
namespace {

using namespace expert_major_gpu;

RowPair pair_of(const ConstTensorView& from, const TensorView& to) {
  return {from.as<std::byte>(), size_bytes(from.dtype, from.strides[0]), to.as<std::byte>(),
          size_bytes(to.dtype, to.strides[0]), static_cast<uint32_t>(size_bytes(from.dtype, from.shape[1]))};
}

std::string refuse(const Context&, const ExpertMajorArgs& args) {
  const RowPair rows = pair_of(args.rows, args.output);
  const auto addresses = reinterpret_cast<uintptr_t>(rows.from) | reinterpret_cast<uintptr_t>(rows.to);
  const auto bytes = static_cast<uint64_t>(rows.from_stride | rows.to_stride | rows.row_bytes);
  if ((addresses | bytes) % 16 == 0) return {};
  return fmt::format("rows of {} bytes, {} and {} apart, at {} and {}: all must be multiples of 16", rows.row_bytes,
                     rows.from_stride, rows.to_stride, static_cast<const void*>(rows.from),
                     static_cast<const void*>(rows.to));
}

void launch(Context& context, const ExpertMajorArgs& args, Stream stream) {
  GatherArgs to;
  to.rows = pair_of(args.rows, args.output);
  if (args.scales.given()) to.scales = pair_of(args.scales, args.output_scales);
  to.sorted_rows = args.sorted_rows.as<int32_t>();
  to.num_padded = args.num_padded.as<int32_t>();
  to.num_rows = static_cast<uint32_t>(args.rows.shape[0]);
  to.capacity = static_cast<uint32_t>(args.sorted_rows.shape[0]);
  if (to.capacity == 0) return;
  const gpu::DeviceGuard guard(context.device());
  launch_gather(to, gpu::num_multiprocessors(context.device().index), stream);
}

constexpr std::array<Variant<ExpertMajorArgs>, 1> kVariants{{
    {{"expert_major.gather", "a wave per slot copies a row", gpu::kDeviceType}, refuse, launch},
}};

}  // namespace

std::span<const Variant<ExpertMajorArgs>> expert_major_gpu_variants() { return kVariants; }

}  // namespace mixlane
