#include "ops/experts/choose.hpp"

#include <algorithm>

#include "core/stage_states.hpp"
#include "ops/experts/op.hpp"
#include "ops/experts/wgmma/config.hpp"

namespace mixlane {
namespace {

constexpr std::string_view kQuants[] = {"none", "fp8", "fp8_channel", "mxfp4", "mxfp4_fp8"};
constexpr TuneField kFields[] = {{"quant", kQuants}, {"experts"}, {"hidden"}, {"intermediate"}, {"topk"}, {"tokens"}};

std::string tune_options(const PackedKey& key) {
  return fmt::format(" --quant {} --hidden {} --intermediate {} --shapes {}x{} --ranks 1",
                     kQuants[static_cast<size_t>(key[0])], key[2], key[3], key[1], key[4]);
}

int64_t bucket_of(const PackedKey& key) { return kExpertsBuckets.end(key[5], key[4]); }

constexpr TuneSpace kSpace{"experts", kFields, tune_options, bucket_of};

struct ExpertsTuning {
  StageTuning tuning;
};

std::vector<std::string_view> variant_ids() {
  std::vector<std::string_view> ids;
  for (const auto& variant : experts_gpu_variants()) ids.push_back(variant.info.id);
  return ids;
}

}  // namespace

const TuneSpace& experts_tune_space() { return kSpace; }

PackedKey experts_key(const ExpertsArgs& args) {
  const ExpertWeights& w = args.weights;
  return {static_cast<int64_t>(w.format),
          w.num_experts,
          w.hidden,
          w.intermediate,
          args.num_topk,
          kExpertsBuckets.end(args.rows.shape[0], args.num_topk)};
}

StageTuning& experts_tuning(const Context& context) {
  return context.states()
      .get<ExpertsTuning>(
          [&] { return new ExpertsTuning{StageTuning(context, gpu_machine(context.device()), kSpace, variant_ids())}; })
      .tuning;
}

double estimate_experts_mma(const ExpertsArgs& args, int num_multiprocessors) {
  // Two launches, then the larger of decoding weights and multiplying: in one ns on one multiprocessor of an H200.
  constexpr double kLaunchesUs = 150, kFlops = 500, kDecodedValues = 4.1, kBf16Values = 5.9;
  const WgmmaShape shape = wgmma_shape(args, num_multiprocessors);
  const double values = static_cast<double>(gate_up_rows(args.weights, args.activation) + shape.intermediate) *
                        static_cast<double>(shape.hidden);
  const double decoding =
      touched_experts(shape) * values / (shape.format == QuantFormat::none ? kBf16Values : kDecodedValues);
  return kLaunchesUs + 1e-3 * std::max(decoding, 2 * shape.num_pairs * values / kFlops) / num_multiprocessors;
}

}  // namespace mixlane
