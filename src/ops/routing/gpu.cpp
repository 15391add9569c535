// The routing variants that run on GPUs: arguments resolved for the kernels, and the registry lines.
#include "gpu/runtime.hpp"
#include "ops/routing/launchers.hpp"
#include "ops/routing/op.hpp"

namespace mixlane {
namespace routing_gpu {
namespace {

static_assert(routing_gpu::kMaxTopk == mixlane::kMaxTopk);
constexpr int64_t kMaxTokens = int64_t{1} << 31;

// Rows and biases consist of runs of four, each of which can be loaded in one piece.
bool has_aligned_runs(const RoutingArgs& args) {
  const auto starts_run = [](const ConstTensorView& view) {
    return reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(bits(view.dtype) / 2) == 0;
  };
  return args.logits.shape[1] % 4 == 0 && starts_run(args.logits) && args.logits.strides[0] % 4 == 0 &&
         (!args.correction_bias.given() || starts_run(args.correction_bias));
}

void resolve_tensors(const RoutingArgs& args, KernelArgs& to) {
  to.logits = static_cast<const std::byte*>(args.logits.data);
  to.row_bytes = args.logits.strides[0] * bits(args.logits.dtype) / 8;
  to.logits_type = args.logits.dtype;
  to.aligned = has_aligned_runs(args);
  to.plain = to.aligned && args.config.softcap == 0.0f;
  to.bias = args.correction_bias.as<float>();
  to.num_valid_rows = args.num_valid_rows.as<int32_t>();
  if (args.hash_table.given()) {
    to.hash_table = args.hash_table.as<int32_t>();
    to.token_ids = args.token_ids.as<int32_t>();
    to.vocabulary = static_cast<int32_t>(args.hash_table.shape[0]);
  }
  if (args.replica_offsets.given()) {
    to.replica_offsets = args.replica_offsets.as<int32_t>();
    to.replica_ids = args.replica_ids.as<int32_t>();
    to.num_replicas = static_cast<int32_t>(args.replica_ids.shape[0]);
  }
  to.ids = args.topk_ids.data;
  to.wide_ids = args.topk_ids.dtype == DType::i64;
  to.weights = args.topk_weights.as<float>();
  if (args.config.num_zero_experts > 0) to.zero_weights = args.zero_weights.as<float>();
  to.status = args.status;
}

}  // namespace

KernelArgs make_args(const RoutingArgs& args) {
  const RoutingConfig& c = args.config;
  KernelArgs to;
  resolve_tensors(args, to);
  to.num_tokens = static_cast<uint32_t>(args.logits.shape[0]);
  to.num_experts = static_cast<uint32_t>(c.num_experts);
  to.num_columns = static_cast<uint32_t>(c.num_experts + c.num_zero_experts);
  to.num_topk = static_cast<uint32_t>(c.num_topk);
  to.scoring = c.scoring;
  to.renormalize = c.renormalize;
  to.nan_is_lowest = c.nan_policy == NanPolicy::lowest;
  to.renorm_epsilon = c.renorm_epsilon;
  to.scale = c.scale;
  to.softcap = c.softcap;
  to.num_groups = static_cast<uint32_t>(c.num_groups);
  to.topk_groups = static_cast<uint32_t>(c.topk_groups);
  to.group_score = c.group_score;
  to.by_group = gpu::Divider::by(to.num_experts / to.num_groups);
  to.chooses_by_score = args.correction_bias.given() || c.num_groups > 1;
  // Where the chosen are divided by their sum, that of all experts cancels out; the best one is among them.
  const bool cancels = c.renormalize && c.renorm_epsilon == 0.0f && !to.chooses_by_score && !args.hash_table.given();
  to.needs_sum = c.scoring == Scoring::softmax && !cancels;
  return to;
}

namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Why a variant does not take (valid) arguments; empty if it does

std::string refuse_warp(const Context&, const RoutingArgs& args) {
  if (args.logits.shape[0] >= kMaxTokens)
    return fmt::format("{} tokens; GPUs take fewer than {}", args.logits.shape[0], kMaxTokens);
  return "";
}

void run_warp(Context& context, const RoutingArgs& args, Stream stream) {
  if (args.logits.shape[0] == 0) return;
  const Device device = context.device();
  const gpu::DeviceGuard guard(device);
  const bool overlap = device.type == DeviceType::cuda && gpu::compute_capability(device.index) >= 90;
  launch_warp(make_args(args), gpu::num_multiprocessors(device.index), overlap, stream);
}

}  // namespace
}  // namespace routing_gpu

std::span<const Variant<RoutingArgs>> routing_gpu_variants() {
  using namespace routing_gpu;
  static constexpr Variant<RoutingArgs> kVariants[] = {
      {{"routing.warp", "a wave per token: a bound that few logits reach, and the places of those", gpu::kDeviceType},
       refuse_warp,
       run_warp},
  };
  return kVariants;
}

}  // namespace mixlane
