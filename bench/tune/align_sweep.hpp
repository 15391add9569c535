// Tuning align, and how far "auto" is from the best variant afterwards.
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
  std::vector<int64_t> tokens;  // each stands for its bucket
  int block = 64;
  RaceOptions race;
};

// Every bucket up to the largest.
std::vector<int64_t> all_token_buckets();

// Measures every key of the sweep that more than one variant takes, after checking their results, and returns the choices.
// `caller` is the stream that the caller works on: unsupported is thrown while it is captured, because timing waits for the
// device, which a capture can't hold.
TunedTable tune_align(Context& context, const AlignSweep& sweep, const TuningRun& run, Stream caller,
                      const TuneProgress& progress = {});

// One line of a shape's choices by tokens: "align.none to 8, align.cluster to 16384, align.multi_phase".
std::string choices_text(const std::vector<std::pair<int64_t, std::string>>& by_tokens);

// A point of the sweep over shapes, skews and blocks: what "auto" takes and what each variant takes there.
struct RegretPoint {
  AlignShapeKey shape;
  AlignSkew skew = AlignSkew::uniform;
  int block = 0;
  int64_t tokens = 0;
  std::vector<std::pair<std::string, double>> median_us;
  std::string chosen, modelled;         // by "auto", and by the model that fills its gaps
  double regret = 0, model_regret = 0;  // time over the best variant's, minus 1
};

struct RegretSweep {
  struct Layout {
    AlignSkew skew;
    int block;
  };
  std::vector<AlignShapeKey> shapes;
  std::vector<Layout> layouts;
  std::vector<int64_t> tokens;
  RaceOptions race;
};

std::vector<RegretPoint> align_regret(Context& context, const RegretSweep& sweep, Stream caller,
                                      const TuneProgress& progress = {});
// Markdown: a row per shape and layout, the worst points, the sums.
std::string regret_text(const std::vector<RegretPoint>& points);

}  // namespace mixlane::bench
