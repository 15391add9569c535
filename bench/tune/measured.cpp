#include "tune/measured.hpp"

#include <algorithm>

#include "core/error.hpp"

namespace mixlane::bench {
namespace {

TuneValue value_of(const TuneField& field, int64_t packed) {
  if (field.words.empty()) return packed;
  return std::string(field.words[static_cast<size_t>(packed)]);
}

}  // namespace

std::vector<int64_t> bucket_ends(const TokenBuckets& buckets, int64_t pairs_per_token, int64_t most_tokens) {
  std::vector<int64_t> ends;
  int64_t tokens = 1;
  for (;;) {
    const int64_t end = buckets.end(tokens, pairs_per_token);
    if (end > most_tokens || (!ends.empty() && end <= ends.back())) return ends;
    ends.push_back(end);
    tokens = end + 1;
  }
}

std::vector<int64_t> bucket_ends_of(const TokenBuckets& buckets, std::span<const int64_t> tokens, int64_t pairs_per_token,
                                    int64_t most_tokens) {
  if (tokens.empty()) return bucket_ends(buckets, pairs_per_token, most_tokens);
  std::vector<int64_t> ends;
  for (const int64_t each : tokens) ends.push_back(buckets.end(each, pairs_per_token));
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  return ends;
}

int64_t first_in_bucket(const TokenBuckets& buckets, int64_t tokens, int64_t pairs_per_token) {
  int64_t first = 1;
  for (const int64_t end : bucket_ends(buckets, pairs_per_token)) {
    if (tokens <= end) break;
    first = end + 1;
  }
  return first;
}

RaceResult race_works(std::span<PreparedWork> works, const RaceOptions& options) {
  const auto sample = [&](int candidate) {
    PreparedWork& work = works[static_cast<size_t>(candidate)];
    work.take(1);
    return work.samples_us().back();
  };
  return race(static_cast<int>(works.size()), sample, options);
}

std::vector<std::pair<std::string, double>> times_of(std::span<const std::string> ids, const RaceResult& result) {
  std::vector<std::pair<std::string, double>> times;
  for (size_t i = 0; i < ids.size(); ++i) times.emplace_back(ids[i], result.median_us[i]);
  return times;
}

TunedTable empty_table(const TuneSpace& space, const TunedMachine& machine, const TuningRun& run) {
  TunedTable table;
  table.file = "the new choices";
  table.stage = space.stage;
  table.machine = machine;
  table.runs = {run};
  for (const TuneField& field : space.fields) table.fields.emplace_back(field.name);
  return table;
}

TunedEntry make_entry(const TuneSpace& space, const PackedKey& key, std::span<const std::string> ids,
                      const RaceResult& result) {
  TunedEntry entry;
  for (size_t i = 0; i < space.fields.size(); ++i) entry.key.push_back(value_of(space.fields[i], key[i]));
  entry.choice = ids[static_cast<size_t>(result.winner)];
  entry.measured_us = times_of(ids, result);
  return entry;
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

}  // namespace mixlane::bench
