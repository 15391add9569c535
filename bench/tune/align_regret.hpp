// How far "auto" is from the best variant of align, over a sweep.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tune/align_case.hpp"
#include "tune/align_sweep.hpp"
#include "tune/regret.hpp"

namespace mixlane::bench {

// A point of the sweep over shapes, skews and blocks: what "auto" takes and what each variant takes there.
struct RegretPoint : Regret {
  AlignShapeKey shape;
  AlignSkew skew = AlignSkew::uniform;
  int block = 0;
  int64_t tokens = 0;
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
// Markdown: a row per shape and layout, and the worst points.
std::string regret_text(const std::vector<RegretPoint>& points);

}  // namespace mixlane::bench
