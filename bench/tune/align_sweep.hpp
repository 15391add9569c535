// Tuning align: the choices for a sweep of keys.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/tuning.hpp"
#include "tune/align_case.hpp"
#include "tune/race.hpp"

namespace mixlane::bench {

// Told once per shape: what was found, a line.
using TuneProgress = std::function<void(const std::string& line)>;

struct AlignSweep {
  std::vector<AlignShapeKey> shapes;
  std::vector<int64_t> tokens;  // none: every bucket of the shape
  int block = 64;
  RaceOptions race;
};

// Every bucket up to the largest.
std::vector<int64_t> all_token_buckets(int64_t pairs_per_token);

// Measures every key of the sweep that more than one variant takes, after checking their results, and returns the choices.
// `caller` is the stream that the caller works on: unsupported is thrown while it is captured, because timing waits for the
// device, which a capture can't hold.
TunedTable tune_align(Context& context, const AlignSweep& sweep, const TuningRun& run, Stream caller,
                      const TuneProgress& progress = {});

// One line of a shape's choices by tokens: "align.none to 8, align.cluster to 16384, align.multi_phase".
std::string choices_text(const std::vector<std::pair<int64_t, std::string>>& by_tokens);

}  // namespace mixlane::bench
