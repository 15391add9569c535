#include "tune/align_sweep.hpp"

#include <algorithm>

#include "core/error.hpp"

namespace mixlane::bench {
namespace {

TuneValue value_of(const TuneField& field, int64_t packed) {
  if (field.words.empty()) return packed;
  return std::string(field.words[static_cast<size_t>(packed)]);
}

}  // namespace

std::vector<int64_t> all_token_buckets(int64_t pairs_per_token) {
  std::vector<int64_t> buckets;
  int64_t tokens = 1;
  for (;;) {
    const int64_t bucket = token_bucket(tokens, pairs_per_token);
    if (!buckets.empty() && bucket <= buckets.back()) return buckets;
    buckets.push_back(bucket);
    tokens = bucket + 1;
  }
}

std::string choices_text(const std::vector<std::pair<int64_t, std::string>>& by_tokens) {
  std::string text;
  for (size_t i = 0; i < by_tokens.size(); ++i) {
    const bool last = i + 1 == by_tokens.size();
    if (!last && by_tokens[i + 1].second == by_tokens[i].second) continue;
    text += fmt::format("{}{}", text.empty() ? "" : ", ", by_tokens[i].second);
    if (!last) text += fmt::format(" to {}", by_tokens[i].first);
  }
  return text;
}

TunedTable tune_align(Context& context, const AlignSweep& sweep, const TuningRun& run, Stream caller,
                      const TuneProgress& progress) {
  refuse_capture(caller);
  const TuneSpace& space = align_tune_space();
  TunedTable table{.file = "the new choices",
                   .stage = std::string(space.stage),
                   .machine = align_tuning(context).machine(),
                   .fields = {},
                   .runs = {run},
                   .entries = {}};
  for (const TuneField& field : space.fields) table.fields.emplace_back(field.name);
  Context cpu;
  DeviceTimer timer(context.device());
  for (const AlignShapeKey& shape : sweep.shapes) {
    const std::vector<int64_t> sizes = sweep.tokens.empty() ? all_token_buckets(shape.topk) : sweep.tokens;
    const AlignIdsOnGpu ids(context.device(), shape, AlignSkew::uniform, *std::max_element(sizes.begin(), sizes.end()));
    std::vector<std::pair<int64_t, std::string>> by_tokens;
    for (const int64_t tokens : sizes) {
      const AlignCase align_case(context, ids, tokens, sweep.block);
      if (align_case.candidates().size() < 2) continue;
      align_case.check(cpu, timer.stream());
      const Timed timed = time_candidates(timer, align_case, sweep.race);
      TunedEntry entry;
      const PackedKey key = align_key(align_case.args("auto"));
      for (size_t i = 0; i < space.fields.size(); ++i) entry.key.push_back(value_of(space.fields[i], key[i]));
      entry.choice = timed.candidates[static_cast<size_t>(timed.result.winner)]->info.id;
      entry.measured_us = timed.times();
      by_tokens.emplace_back(tokens, entry.choice);
      table.entries.push_back(std::move(entry));
    }
    if (progress) progress(fmt::format("{}: {}", shape_text(shape), choices_text(by_tokens)));
  }
  return table;
}

}  // namespace mixlane::bench
