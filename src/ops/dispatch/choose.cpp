#include "ops/dispatch/choose.hpp"

#include "core/stage_states.hpp"
#include "ops/dispatch/backend.hpp"

namespace mixlane {
namespace {

constexpr std::string_view kMemory[] = {"window", "copies"};
constexpr TuneField kFields[] = {{"ranks"}, {"row_bytes"}, {"multiprocessors"}, {"memory", kMemory}, {"tokens"}};

std::string tune_options(const PackedKey& key) {
  return fmt::format(" --ranks {} --hidden {}{}", key[0], key[1] / 2,
                     key[2] > 0 ? fmt::format(" --multiprocessors {}", key[2]) : "");
}

int64_t bucket_of(const PackedKey& key) { return kExchangeBuckets.end(key[4]); }

constexpr TuneSpace kDispatchSpace{"dispatch", kFields, tune_options, bucket_of};
constexpr TuneSpace kCombineSpace{"combine", kFields, tune_options, bucket_of};

struct ExchangeTuning {
  std::vector<std::string_view> candidates[2];  // per stage
  StageTuning dispatch, combine;
  StageTuning& of(ExchangeStage stage) { return stage == ExchangeStage::dispatch ? dispatch : combine; }
};

ExchangeTuning& tuning_of(const Context& context) {
  return context.states().get<ExchangeTuning>([&] {
    const TunedMachine machine = gpu_machine(context.device());
    const auto dispatch = exchange_candidates(ExchangeStage::dispatch),
               combine = exchange_candidates(ExchangeStage::combine);
    return new ExchangeTuning{{dispatch, combine},
                              StageTuning(context, machine, kDispatchSpace, dispatch),
                              StageTuning(context, machine, kCombineSpace, combine)};
  });
}

}  // namespace

const TuneSpace& exchange_tune_space(ExchangeStage stage) {
  return stage == ExchangeStage::dispatch ? kDispatchSpace : kCombineSpace;
}

PackedKey ExchangeKey::packed() const {
  return {num_ranks, row_bytes, num_multiprocessors, copy_engine ? 1 : 0, kExchangeBuckets.end(num_tokens)};
}

std::vector<std::string_view> exchange_candidates(ExchangeStage stage) {
  std::vector<std::string_view> ids;
  for (const VariantInfo& variant : stage == ExchangeStage::dispatch ? dispatch_gpu_variants() : combine_gpu_variants())
    ids.push_back(variant.id);
  return ids;
}

StageTuning& exchange_tuning(const Context& context, ExchangeStage stage) { return tuning_of(context).of(stage); }

std::string_view tuned_exchange(const Context& context, ExchangeStage stage, const ExchangeKey& key) {
  const PackedKey packed = key.packed();
  ExchangeTuning& both = tuning_of(context);
  StageTuning& tuning = both.of(stage);
  const auto& candidates = both.candidates[static_cast<int>(stage)];
  const int found = tuning.find(packed);
  if (found >= 0) return candidates[static_cast<size_t>(found)];
  if (candidates.size() > 1) tuning.note_absent(context, packed);
  return {};
}

}  // namespace mixlane
