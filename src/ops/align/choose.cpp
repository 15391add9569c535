#include "ops/align/choose.hpp"

#include "core/stage_states.hpp"
#include "ops/align/op.hpp"

namespace mixlane {
namespace {

constexpr std::string_view kIds[] = {"i32", "i64", "window"};
constexpr TuneField kFields[] = {{"experts"}, {"topk"}, {"ids", kIds}, {"tokens"}};
constexpr TuneSpace kSpace{"align", kFields};

struct AlignTuning {
  StageTuning tuning;
};

std::vector<std::string_view> variant_ids() {
  std::vector<std::string_view> ids;
  for (const auto& variant : align_gpu_variants()) ids.push_back(variant.info.id);
  return ids;
}

// us = launch + per_group * groups + per_pair * pairs, where the multiprocessors that share the pairs are a constant number,
// or all of them. Fitted to what `mixlane tune` measured on an H200 (132 multiprocessors) for dense i32 ids; what matters is
// where the lines cross, and that is set by the numbers of barriers and of multiprocessors more than by a GPU's clock.
struct Line {
  double launch_us;
  double group_ns;
  double pair_ns;  // of one multiprocessor if all share the pairs

  double us(const AlignArgs& args, int num_sharing = 1) const {
    const AlignShape shape(args);
    return launch_us +
           1e-3 * (group_ns * shape.num_groups() + pair_ns * static_cast<double>(shape.num_pairs()) / num_sharing);
  }
};

constexpr Line kNone{1.9, 0, 14};
constexpr Line kOneshot{2.3, 1.5, 0.48};
constexpr Line kCluster{3.1, 3.2, 0.044};
constexpr Line kMultiPhase{7.6, 3.2, 0.82};
constexpr Line kRadix{20, 0.2, 2.5};

}  // namespace

AlignIds align_ids(const AlignArgs& args) {
  const bool one_segment = !args.segment_rows.given() || args.segment_rows.shape[0] == 1;
  if (!args.topk_ids.contiguous() || args.expert_map.given() || !one_segment) return AlignIds::window;
  return args.topk_ids.dtype == DType::i32 ? AlignIds::i32 : AlignIds::i64;
}

const TuneSpace& align_tune_space() { return kSpace; }

PackedKey align_key(const AlignArgs& args) {
  const AlignShape shape(args);
  return {shape.num_local_experts, shape.num_topk, static_cast<int64_t>(align_ids(args)), token_bucket(shape.rows)};
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
