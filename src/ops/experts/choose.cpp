#include "ops/experts/choose.hpp"

#include <algorithm>
#include <bit>

#include "core/stage_states.hpp"
#include "ops/experts/op.hpp"
#include "ops/quant/formats.hpp"

namespace mixlane {
namespace {

constexpr std::string_view kQuants[] = {"none", "fp8", "fp8_channel", "mxfp4", "mxfp4_fp8"};
constexpr TuneField kFields[] = {{"quant", kQuants}, {"experts"}, {"hidden"}, {"intermediate"}, {"topk"}, {"tokens"}};

std::string tune_options(const PackedKey& key) {
  return fmt::format(" --quant {} --hidden {} --intermediate {} --shapes {}x{} --ranks 1",
                     kQuants[static_cast<size_t>(key[0])], key[2], key[3], key[1], key[4]);
}

constexpr TuneSpace kSpace{"experts", kFields, tune_options};

struct ExpertsTuning {
  StageTuning tuning;
};

std::vector<std::string_view> variant_ids() {
  std::vector<std::string_view> ids;
  for (const auto& variant : experts_gpu_variants()) ids.push_back(variant.info.id);
  return ids;
}

// us = launches + the larger of reading weights and rows and multiplying them, at rates that a multiprocessor of an H200
// has. Every pair counts as this rank's: an upper bound, but the same one for all variants.
struct Rates {
  double launch_us;
  double bytes_per_ns;         // of a multiprocessor
  double bf16_flops_per_ns;    // the same
  double narrow_flops_factor;  // of products of e4m3 values

  double us(const ExpertsArgs& args, int num_multiprocessors) const {
    const int64_t pairs = args.rows.shape[0] * args.num_topk;
    const Cost cost = experts_cost(args, std::min<int64_t>(args.weights.num_experts, pairs), pairs);
    const double factor = quantises_activations(args.weights.format) ? narrow_flops_factor : 1;
    const double ns = std::max(static_cast<double>(cost.bytes_read + cost.bytes_written) / bytes_per_ns,
                               static_cast<double>(cost.flops) / (bf16_flops_per_ns * factor));
    return launch_us + 1e-3 * ns / num_multiprocessors;
  }
};

constexpr Rates kMma{150, 11, 950, 1};

}  // namespace

const TuneSpace& experts_tune_space() { return kSpace; }

int64_t experts_bucket(int64_t num_rows, int64_t num_topk) {
  constexpr uint64_t kMaxPairs = 1 << 18;
  const uint64_t pairs = std::min(static_cast<uint64_t>(num_rows * num_topk), kMaxPairs);
  return std::max<int64_t>(static_cast<int64_t>(std::bit_ceil(pairs)) / num_topk, 1);
}

PackedKey experts_key(const ExpertsArgs& args) {
  const ExpertWeights& w = args.weights;
  return {static_cast<int64_t>(w.format),
          w.num_experts,
          w.hidden,
          w.intermediate,
          args.num_topk,
          experts_bucket(args.rows.shape[0], args.num_topk)};
}

StageTuning& experts_tuning(const Context& context) {
  return context.states()
      .get<ExpertsTuning>(
          [&] { return new ExpertsTuning{StageTuning(context, gpu_machine(context.device()), kSpace, variant_ids())}; })
      .tuning;
}

double estimate_experts_mma(const ExpertsArgs& args, int num_multiprocessors) { return kMma.us(args, num_multiprocessors); }

}  // namespace mixlane
