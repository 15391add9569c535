#include "ops/align/choose.hpp"

#include "core/stage_states.hpp"
#include "ops/align/op.hpp"

namespace mixlane {
namespace {

constexpr std::string_view kIds[] = {"i32", "i64", "window"};
constexpr TuneField kFields[] = {{"experts"}, {"topk"}, {"ids", kIds}, {"tokens"}};

std::string tune_options(const PackedKey& key) {
  const bool window = key[2] == static_cast<int64_t>(AlignIds::window);
  return fmt::format(" --shapes {}x{} --ids {}{}", key[0], key[1], kIds[static_cast<size_t>(key[2])],
                     window ? " --ranks 1" : "");
}

constexpr TuneSpace kSpace{"align", kFields, tune_options};

struct AlignTuning {
  StageTuning tuning;
};

std::vector<std::string_view> variant_ids() {
  std::vector<std::string_view> ids;
  for (const auto& variant : align_gpu_variants()) ids.push_back(variant.info.id);
  return ids;
}

// us = launch + per_group * groups + per_pair * pairs, where all multiprocessors share the pairs, or a constant number of
// them works. Fitted to an H200 (132 multiprocessors) where a variant is near the best: `mixlane tune --stage align
// --regret` prints such fits. What matters is where the lines cross.
struct Line {
  double launch_us;
  double group_ns;
  double pair_ns;  // of one multiprocessor if all share the pairs

  double us(const AlignShape& shape, int num_sharing) const {
    return launch_us +
           1e-3 * (group_ns * shape.num_groups() + pair_ns * static_cast<double>(shape.num_pairs()) / num_sharing);
  }
};

// Kernels read dense i32 ids in a way of their own.
struct Lines {
  Line dense_i32;
  Line other;

  double us(const AlignArgs& args, int num_sharing = 1) const {
    return (align_ids(args) == AlignIds::i32 ? dense_i32 : other).us(AlignShape(args), num_sharing);
  }
};

constexpr Lines kNone{{1.1, 0.1, 31}, {1.9, 0.5, 15}};
constexpr Lines kOneshot{{2.19, 0.1, 0.39}, {6.5, 1.5, 0.24}};
constexpr Lines kCluster{{2.95, 1, 0.022}, {8.2, 2.5, 0.03}};
constexpr Lines kMultiPhase{{8.5, 5, 0.65}, {10.5, 4.8, 3.5}};
constexpr Lines kRadix{{21, 0.2, 1.6}, {22, 0.2, 10}};

}  // namespace

AlignIds align_ids(const AlignArgs& args) {
  const bool one_segment = !args.segment_rows.given() || args.segment_rows.shape[0] == 1;
  if (!args.topk_ids.contiguous() || args.expert_map.given() || !one_segment) return AlignIds::window;
  return args.topk_ids.dtype == DType::i32 ? AlignIds::i32 : AlignIds::i64;
}

const TuneSpace& align_tune_space() { return kSpace; }

PackedKey align_key(const AlignArgs& args) {
  const AlignShape shape(args);
  return {shape.num_local_experts, shape.num_topk, static_cast<int64_t>(align_ids(args)),
          token_bucket(shape.rows, shape.num_topk)};
}

StageTuning& align_tuning(const Context& context) {
  return context.states()
      .get<AlignTuning>(
          [&] { return new AlignTuning{StageTuning(context, gpu_machine(context.device()), kSpace, variant_ids())}; })
      .tuning;
}

double estimate_align_none(const AlignArgs& args, int) { return kNone.us(args); }
double estimate_align_oneshot(const AlignArgs& args, int) { return kOneshot.us(args); }
double estimate_align_cluster(const AlignArgs& args, int) { return kCluster.us(args); }
double estimate_align_multi_phase(const AlignArgs& args, int num_multiprocessors) {
  return kMultiPhase.us(args, num_multiprocessors);
}
double estimate_align_radix(const AlignArgs& args, int num_multiprocessors) { return kRadix.us(args, num_multiprocessors); }

}  // namespace mixlane
