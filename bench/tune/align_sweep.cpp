#include "tune/align_sweep.hpp"

#include <algorithm>

#include "core/error.hpp"

namespace mixlane::bench {

TunedTable tune_align(Context& context, const AlignSweep& sweep, const TuningRun& run, Stream caller,
                      const TuneProgress& progress) {
  refuse_capture(caller);
  const TuneSpace& space = align_tune_space();
  TunedTable table = empty_table(space, align_tuning(context).machine(), run);
  Context cpu;
  DeviceTimer timer(context.device());
  for (const AlignShapeKey& shape : sweep.shapes) {
    const std::vector<int64_t> sizes = sweep.tokens.empty() ? token_buckets(shape.topk) : sweep.tokens;
    const AlignIdsOnGpu ids(context.device(), shape, AlignSkew::uniform, *std::max_element(sizes.begin(), sizes.end()));
    std::vector<std::pair<int64_t, std::string>> by_tokens;
    for (const int64_t tokens : sizes) {
      const AlignCase align_case(context, ids, tokens, sweep.block);
      if (align_case.candidates().size() < 2) continue;
      align_case.check(cpu, timer.stream());
      const Timed timed = time_candidates(timer, align_case, sweep.race);
      table.entries.push_back(make_entry(space, align_key(align_case.args("auto")), timed.ids(), timed.result));
      by_tokens.emplace_back(tokens, table.entries.back().choice);
    }
    if (progress) progress(fmt::format("{}: {}", shape_text(shape), choices_text(by_tokens)));
  }
  return table;
}

}  // namespace mixlane::bench
