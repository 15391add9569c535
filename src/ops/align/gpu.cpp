// The align variants that run on GPUs: arguments resolved for the kernels, and the registry lines.
#include <algorithm>

#include "core/arena.hpp"
#include "gpu/runtime.hpp"
#include "ops/align/choose.hpp"
#include "ops/align/launchers.hpp"
#include "ops/align/op.hpp"

namespace mixlane {
namespace align_gpu {
namespace {

constexpr int64_t kMaxPairs = int64_t{1} << 31;
// Four codes per thread of the smallest block, and counters that fit in shared memory; align.radix takes any number.
constexpr int64_t kMaxCodes = 1028;

int64_t num_pairs(const AlignArgs& args) { return args.topk_ids.num_values(); }
int num_groups(const AlignArgs& args) { return args.num_local_experts > 0 ? args.num_local_experts : args.num_experts; }
int num_codes(const AlignArgs& args) { return num_groups(args) + (args.invalid_ids == InvalidIds::bucket ? 1 : 0); }

bool is_plain(const AlignArgs& args) { return align_ids(args) == AlignIds::i32; }

PairSource make_source(const AlignArgs& args) {
  PairSource source;
  source.ids = args.topk_ids.data;
  source.row_stride = args.topk_ids.strides[0];
  source.num_rows = static_cast<uint32_t>(args.topk_ids.shape[0]);
  source.num_topk = static_cast<uint32_t>(args.topk_ids.shape[1]);
  source.num_pairs = source.num_rows * source.num_topk;
  source.num_experts = static_cast<uint32_t>(args.num_experts);
  source.num_groups = static_cast<uint32_t>(num_groups(args));
  source.by_topk = gpu::Divider::by(std::max(source.num_topk, 1u));
  source.wide_ids = args.topk_ids.dtype == DType::i64;
  source.bucket = args.invalid_ids == InvalidIds::bucket;
  if (args.expert_map.given()) source.expert_map = args.expert_map.as<int32_t>();
  if (args.segment_rows.given()) {
    source.segment_rows = args.segment_rows.as<int32_t>();
    source.num_segments = static_cast<uint32_t>(args.segment_rows.shape[0]);
    source.by_segment = gpu::Divider::by(std::max(source.num_rows / std::max(source.num_segments, 1u), 1u));
  }
  return source;
}

Outputs make_outputs(const AlignArgs& args) {
  Outputs out;
  out.sorted_pairs = args.sorted_pairs.as<int32_t>();
  out.block_experts = args.block_experts.as<int32_t>();
  out.num_padded = args.num_padded.as<int32_t>();
  out.expert_counts = args.expert_counts.as<int32_t>();
  out.expert_offsets = args.expert_offsets.as<int32_t>();
  out.pair_slots = args.pair_slots.as<int32_t>();
  out.sorted_weights = args.sorted_weights.as<float>();
  out.sorted_rows = args.sorted_rows.as<int32_t>();
  out.sorted_packed = args.sorted_packed.as<int32_t>();
  out.status = args.status;
  if (args.sorted_weights.given()) {
    out.weights = args.topk_weights.as<float>();
    out.weight_stride = args.topk_weights.strides[0];
  }
  if (args.zero_fill.given()) {
    out.zero_fill = args.zero_fill.as<std::byte>();
    out.zero_bytes = size_bytes(args.zero_fill.dtype, args.zero_fill.num_values());
  }
  if (args.block_experts.given()) out.num_blocks = static_cast<uint32_t>(args.block_experts.num_values());
  out.num_slots = static_cast<uint32_t>(args.sorted_pairs.num_values());
  out.pad_value = args.pad_value == -1 ? static_cast<int32_t>(num_pairs(args)) : args.pad_value;
  out.has_extras = out.sorted_weights || out.sorted_rows || out.sorted_packed;
  return out;
}

}  // namespace

KernelArgs make_args(const AlignArgs& args) {
  KernelArgs kernel_args;
  kernel_args.source = make_source(args);
  kernel_args.out = make_outputs(args);
  kernel_args.by_block = gpu::Divider::by(static_cast<uint32_t>(args.block));
  kernel_args.num_codes = static_cast<uint32_t>(num_codes(args));
  return kernel_args;
}

namespace {

// ---------------------------------------------------------------------------------------------------------------------
// Why a variant does not take (valid) arguments; empty if it does

std::string refuse_any(const AlignArgs& args) {
  if (num_pairs(args) >= kMaxPairs) return fmt::format("{} pairs; GPUs take fewer than {}", num_pairs(args), kMaxPairs);
  return "";
}

std::string refuse_above(const AlignArgs& args, int64_t max_pairs) {
  if (num_pairs(args) > max_pairs) return fmt::format("{} pairs; at most {}", num_pairs(args), max_pairs);
  if (num_codes(args) > kMaxCodes) return fmt::format("{} groups; at most {}", num_codes(args), kMaxCodes);
  return "";
}

std::string refuse_none(const Context&, const AlignArgs& args) {
  if (num_pairs(args) > max_none_pairs()) return fmt::format("{} pairs; at most {}", num_pairs(args), max_none_pairs());
  return "";
}

std::string refuse_oneshot(const Context&, const AlignArgs& args) { return refuse_above(args, max_oneshot_pairs()); }

#if !defined(MIXLANE_HIP)
std::string refuse_cluster(const Context& context, const AlignArgs& args) {
  if (!has_cluster(context.device())) return "clusters of 16 blocks need sm_90";
  return refuse_above(args, max_cluster_pairs());
}
#endif

std::string refuse_multi_phase(const Context&, const AlignArgs& args) {
  const std::string reason = refuse_any(args);
  return reason.empty() ? refuse_above(args, kMaxPairs) : reason;
}

void run_none(Context& context, const AlignArgs& args, Stream stream) {
  const gpu::DeviceGuard guard(context.device());
  launch_none(make_args(args), is_plain(args), stream);
}

void run_oneshot(Context& context, const AlignArgs& args, Stream stream) {
  const gpu::DeviceGuard guard(context.device());
  launch_oneshot(make_args(args), is_plain(args), stream);
}

#if !defined(MIXLANE_HIP)
void run_cluster(Context& context, const AlignArgs& args, Stream stream) {
  const gpu::DeviceGuard guard(context.device());
  launch_cluster(make_args(args), is_plain(args), stream);
}
#endif

// A launch of all multiprocessors, with a barrier and workspace from the arena.
void run_cooperative(Context& context, const AlignArgs& args, Stream stream, decltype(radix_workspace_words)& num_words,
                     decltype(launch_radix)& launch) {
  const Device device = context.device();
  const gpu::DeviceGuard guard(device);
  KernelArgs kernel_args = make_args(args);
  Arena& arena = context.arena();
  const Arena::Scope scope(arena);
  kernel_args.barrier = static_cast<uint32_t*>(arena.zeros());
  kernel_args.workspace = arena.take_as<uint32_t>(num_words(kernel_args, device));
  launch(kernel_args, is_plain(args), device, stream);
}

void run_multi_phase(Context& context, const AlignArgs& args, Stream stream) {
  run_cooperative(context, args, stream, multi_phase_workspace_words, launch_multi_phase);
}

std::string refuse_radix(const Context&, const AlignArgs& args) { return refuse_any(args); }

void run_radix(Context& context, const AlignArgs& args, Stream stream) {
  run_cooperative(context, args, stream, radix_workspace_words, launch_radix);
}

}  // namespace
}  // namespace align_gpu

namespace {

// What is simpler comes first: it wins ties.
constexpr Variant<AlignArgs> kVariants[] = {
    {{"align.none", "every pair looks at all others; a few tokens", gpu::kDeviceType},
     align_gpu::refuse_none,
     align_gpu::run_none,
     estimate_align_none},
    {{"align.oneshot", "every block sorts everything, writes its share; up to 8192 pairs", gpu::kDeviceType},
     align_gpu::refuse_oneshot,
     align_gpu::run_oneshot,
     estimate_align_oneshot},
#if !defined(MIXLANE_HIP)
    {{"align.cluster", "clusters, counts through their shared memory; up to 131072 pairs", gpu::kDeviceType},
     align_gpu::refuse_cluster,
     align_gpu::run_cluster,
     estimate_align_cluster},
#endif
    {{"align.multi_phase", "all multiprocessors, one cooperative launch; any number of pairs", gpu::kDeviceType},
     align_gpu::refuse_multi_phase,
     align_gpu::run_multi_phase,
     estimate_align_multi_phase},
    {{"align.radix", "two passes over digits of the group, one cooperative launch; any number of groups", gpu::kDeviceType},
     align_gpu::refuse_radix,
     align_gpu::run_radix,
     estimate_align_radix},
};

}  // namespace

std::span<const Variant<AlignArgs>> align_gpu_variants() { return kVariants; }

}  // namespace mixlane
