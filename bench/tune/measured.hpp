// What every sweep does with what it measures: sizes, races of prepared works, tables and their entries, a line about them.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/tuning.hpp"
#include "measure/device_timer.hpp"
#include "tune/race.hpp"

namespace mixlane::bench {

// Told once per shape: what was found, a line.
using TuneProgress = std::function<void(const std::string& line)>;

// Of stages whose calls are large, more tokens than these are not tuned; the look-up ends there too.
inline constexpr int64_t kMaxTunedTokens = 8192;

// The end of every bucket up to `most_tokens`, or all.
std::vector<int64_t> bucket_ends(const TokenBuckets& buckets, int64_t pairs_per_token, int64_t most_tokens = INT64_MAX);
// Of the buckets that have these tokens, in ascending order; no tokens: of every bucket up to `most_tokens`.
std::vector<int64_t> bucket_ends_of(const TokenBuckets& buckets, std::span<const int64_t> tokens, int64_t pairs_per_token,
                                    int64_t most_tokens = INT64_MAX);
// The fewest tokens of the bucket that has `tokens`.
int64_t first_in_bucket(const TokenBuckets& buckets, int64_t tokens, int64_t pairs_per_token);

// A sample of each in turn.
RaceResult race_works(std::span<PreparedWork> works, const RaceOptions& options);

// Medians by id; `ids` are the race's candidates.
std::vector<std::pair<std::string, double>> times_of(std::span<const std::string> ids, const RaceResult& result);

TunedTable empty_table(const TuneSpace& space, const TunedMachine& machine, const TuningRun& run);
TunedEntry make_entry(const TuneSpace& space, const PackedKey& key, std::span<const std::string> ids,
                      const RaceResult& result);

// One line of a shape's choices by tokens: "align.none to 8, align.cluster to 16384, align.multi_phase".
std::string choices_text(const std::vector<std::pair<int64_t, std::string>>& by_tokens);

}  // namespace mixlane::bench
