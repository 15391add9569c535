#include "ops/expert_major/op.hpp"

#include <array>

#include "core/check.hpp"

namespace mixlane {
namespace {

constexpr std::array<Variant<ExpertMajorArgs>, 1> kCpuVariants{{
    {{"expert_major.cpu", "a copy per slot"}, nullptr, launch_expert_major_cpu},
}};

void validate(const ExpertMajorArgs& args, Device device) {
  if (!args.rows.given() || args.rows.ndim != 2)
    fail(ErrorCode::invalid_argument, "rows is {}; it must be a matrix [R, H]", to_string(args.rows));
  const DType dtype = args.rows.dtype;
  const int64_t num_rows = args.rows.shape[0], hidden = args.rows.shape[1];
  if (size_bytes(dtype, hidden) * 8 != hidden * bits(dtype))
    fail(ErrorCode::invalid_argument, "rows is {}; a row must be whole bytes", to_string(args.rows));
  require_tensor("rows", args.rows, {{dtype}, {num_rows, hidden}, true}, device);
  require_tensor("sorted_rows", args.sorted_rows, {{DType::i32}, {kAnySize}}, device);
  require_tensor("num_padded", args.num_padded, {{DType::i32}, {2}}, device);
  const int64_t capacity = args.sorted_rows.shape[0];
  require_tensor("output", args.output, {{dtype}, {capacity, hidden}, true}, device);
  if (args.scales.given() != args.output_scales.given())
    fail(ErrorCode::invalid_argument, "{} is given without {}", args.scales.given() ? "scales" : "output_scales",
         args.scales.given() ? "output_scales" : "scales");
  if (!args.scales.given()) return;
  require_tensor("scales", args.scales, {{DType::f32}, {num_rows, kAnySize}, true}, device);
  require_tensor("output_scales", args.output_scales, {{DType::f32}, {capacity, args.scales.shape[1]}, true}, device);
}

}  // namespace

void expert_major(Context& context, const ExpertMajorArgs& args, Stream stream) {
  validate(args, context.device());
  const auto table = context.device().type == DeviceType::cpu ? std::span<const Variant<ExpertMajorArgs>>(kCpuVariants)
                                                              : expert_major_gpu_variants();
  select(table, args.variant, context, args).launch(context, args, stream);
}

}  // namespace mixlane
