// expert_major.cpu, and the oracle of the GPU variant.
#include <algorithm>
#include <cstring>

#include "core/parallel.hpp"
#include "ops/expert_major/op.hpp"

namespace mixlane {
namespace {

// Row `from` of one matrix to row `to` of the other, zeros if there is no such row.
void copy_row(const ConstTensorView& source, int64_t from, const TensorView& target, int64_t to) {
  const auto bytes = static_cast<size_t>(size_bytes(source.dtype, source.shape[1]));
  std::byte* const out = target.as<std::byte>() + size_bytes(target.dtype, to * target.strides[0]);
  if (from < 0 || from >= source.shape[0])
    std::memset(out, 0, bytes);
  else
    std::memcpy(out, source.as<std::byte>() + size_bytes(source.dtype, from * source.strides[0]), bytes);
}

}  // namespace

void launch_expert_major_cpu(Context& context, const ExpertMajorArgs& args, Stream) {
  const int64_t num_slots = std::clamp<int64_t>(args.num_padded.as<int32_t>()[0], 0, args.sorted_rows.shape[0]);
  parallel_ranges(context.num_threads(), num_slots, 16, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      const int64_t row = args.sorted_rows.as<int32_t>()[slot];
      copy_row(args.rows, row, args.output, slot);
      if (args.scales.given()) copy_row(args.scales, row, args.output_scales, slot);
    }
  });
}

}  // namespace mixlane
