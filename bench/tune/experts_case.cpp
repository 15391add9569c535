#include "tune/experts_case.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "ops/experts/choose.hpp"
#include "ops/experts/op.hpp"
#include "tune/measured.hpp"

namespace mixlane::bench {

ExpertsCase::ExpertsCase(Context& context, StageInputs& inputs, std::shared_ptr<PlacedExperts> experts)
    : tokens_(inputs.cell().tokens), stage_(make_experts_stage({context, inputs, options_, true}, std::move(experts))) {
  const int num_multiprocessors = experts_tuning(context).machine().num_multiprocessors;
  std::vector<double> estimates;
  double best = 0;
  for (const auto& variant : experts_gpu_variants()) {
    std::string id(variant.info.id);
    if (!stage_->refusal(id).empty()) continue;
    estimates.push_back(variant.estimate_us(stage_->args(0), num_multiprocessors));
    if (candidates_.empty() || estimates.back() < best) {
      best = estimates.back();
      modelled_ = id;
    }
    candidates_.push_back(std::move(id));
  }
  const std::string automatic = chosen();
  std::erase_if(candidates_, [&, i = size_t{0}](const std::string& id) mutable {
    return estimates[i++] > kHopeless * best && id != automatic;
  });
}

PackedKey ExpertsCase::key() const { return experts_key(stage_->args(0)); }

void ExpertsCase::check(Stream stream) const {
  for (const std::string& id : candidates_) {
    stage_->poison(stream, 0);
    stage_->enqueue(id, stream, 0);
    const Correctness result = stage_->verify(stream, 0);
    if (!result.passed)
      fail(ErrorCode::internal, "{} is wrong at {} tokens: error {:.3g}, allowed {:.3g}; nothing was written", id, tokens_,
           result.rel_error, result.tolerance);
  }
}

RaceResult ExpertsCase::measure(DeviceTimer& timer, const RaceOptions& options) const {
  std::vector<PreparedWork> works;
  for (const std::string& id : candidates_)
    works.push_back(
        timer.prepare({[this, &id](Stream stream, int set) { stage_->enqueue(id, stream, set); }, stage_->num_sets()},
                      {.cache = CacheState::cold}));
  return race_works(works, options);
}

}  // namespace mixlane::bench
