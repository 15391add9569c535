// Tuning align: the choices for a sweep of keys.
#pragma once

#include <vector>

#include "tune/align_case.hpp"
#include "tune/measured.hpp"

namespace mixlane::bench {

struct AlignSweep {
  std::vector<AlignShapeKey> shapes;
  std::vector<int64_t> tokens;  // the buckets that have these; none: every bucket of the shape
  int block = 64;
  RaceOptions race;
};

// Measures every key of the sweep that more than one variant takes, after checking their results, and returns the choices.
// `caller` is the stream that the caller works on: unsupported is thrown while it is captured, because timing waits for the
// device, which a capture can't hold.
TunedTable tune_align(Context& context, const AlignSweep& sweep, const TuningRun& run, Stream caller,
                      const TuneProgress& progress = {});

}  // namespace mixlane::bench
