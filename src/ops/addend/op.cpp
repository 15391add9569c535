#include "ops/addend/op.hpp"

#include <array>

#include "core/check.hpp"

namespace mixlane {
namespace {

constexpr std::array<Variant<AddendArgs>, 1> kVariants{{
    {{"addend.cpu", "one pass over the rows"}, nullptr, launch_addend_cpu},
}};

void validate(const Context& context, const AddendArgs& args) {
  const Device device = context.device();
  require_tensor("addend.hidden", args.hidden, {{DType::bf16}, {kAnySize, kAnySize}, true}, device);
  const int64_t num_tokens = args.hidden.shape[0], hidden = args.hidden.shape[1];
  require_tensor_if_given("addend.shared_rows", args.shared_rows, {{DType::bf16}, {num_tokens, hidden}, true}, device);
  require_tensor_if_given("addend.shared_gate", args.shared_gate, {{DType::bf16}, {hidden}}, device);
  require_tensor_if_given("addend.zero_weights", args.zero_weights, {{DType::f32}, {num_tokens}}, device);
  require_tensor("addend.output", args.output, {{DType::f32}, {num_tokens, hidden}}, device);
  if (!args.shared_rows.given() && !args.zero_weights.given())
    fail(ErrorCode::invalid_argument, "addend has no term: give shared_rows, zero_weights or both");
  if (args.shared_gate.given() && !args.shared_rows.given())
    fail(ErrorCode::invalid_argument, "addend.shared_gate scales shared_rows, which are not given");
}

}  // namespace

void add_local_terms(Context& context, const AddendArgs& args, Stream stream) {
  validate(context, args);
  select<AddendArgs>(kVariants, args.variant, context, args).launch(context, args, stream);
}

std::vector<VariantInfo> addend_variants() { return infos<AddendArgs>(kVariants); }

}  // namespace mixlane
