#include "ops/align/choose.hpp"

#include <algorithm>

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

int64_t bucket_of(const PackedKey& key) { return kAlignBuckets.end(key[3], key[1]); }

constexpr TuneSpace kSpace{"align", kFields, tune_options, bucket_of, true};

struct AlignTuning {
  StageTuning tuning;
};

std::vector<std::string_view> variant_ids() {
  std::vector<std::string_view> ids;
  for (const auto& variant : align_gpu_variants()) ids.push_back(variant.info.id);
  return ids;
}

// us = launch + per_group * groups + per_pair * pairs + ramp * min(pairs / ramp_pairs, 1), where all multiprocessors share
// the pairs, or a constant number of them works. Fitted to an H200 (132 multiprocessors) by scripts/fit_align_model.py. What
// matters is where the lines cross.
struct Line {
  double launch_us;
  double group_ns;
  double pair_ns;  // of one multiprocessor if all share the pairs
  double ramp_us;  // a kernel whose threads are there anyway slows down until all of them have pairs
};

// Kernels read dense i32 ids in a way of their own.
struct Lines {
  Line dense_i32;
  Line other;
  double ramp_pairs;  // 0: no ramp

  double us(const AlignArgs& args, int num_sharing = 1) const {
    const AlignShape shape(args);
    const Line& line = align_ids(args) == AlignIds::i32 ? dense_i32 : other;
    const auto pairs = static_cast<double>(shape.num_pairs());
    return line.launch_us + 1e-3 * (line.group_ns * shape.num_groups() + line.pair_ns * pairs / num_sharing) +
           (ramp_pairs > 0 ? line.ramp_us * std::min(pairs / ramp_pairs, 1.0) : 0);
  }
};

constexpr Lines kNone{{1.5, 0.867, 11, 0}, {1.7, 0.52, 12.9, 0}, 0};
constexpr Lines kOneshot{{1.72, 0.0935, 0.44, 0}, {1.95, 0, 1.01, 0}, 256};
constexpr Lines kCluster{{1.67, 0.695, 0.0418, 0.574}, {2.14, 0.47, 0.0619, 0.566}, 4096};
constexpr Lines kMultiPhase{{9.8, 4.76, 0.827, 0}, {14.2, 6.96, 0.514, 0}, 0};
constexpr Lines kRadix{{19.6, 0.157, 1.74, 0}, {21.6, 0.294, 7.68, 0}, 0};

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
          kAlignBuckets.end(shape.rows, shape.num_topk)};
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
