#include "run/table.hpp"

#include <algorithm>

#include "core/format.hpp"

namespace mixlane::bench {
namespace {

// Three significant digits or more: 3.41, 34.1, 341, 3412.
std::string microseconds(double value) { return fmt::format("{:.{}f}", value, value < 10 ? 2 : value < 100 ? 1 : 0); }

// Of speed of light: nothing if there is no peak to compare with.
std::string limit_text(double us) { return us > 0 ? microseconds(us) : "-"; }

std::string percent(double share) { return share > 0 ? fmt::format("{:.0f} %", share * 100) : "-"; }

const StageRecord* find_layer(const Record& record) {
  for (const StageRecord& stage : record.stages)
    if (stage.stage == "layer") return &stage;
  return nullptr;
}

size_t longest_variant(const Record& record) {
  size_t length = 7;
  for (const StageRecord& stage : record.stages) length = std::max(length, stage.variant.size());
  return length;
}

}  // namespace

std::string table_legend(const ResultFile& file) {
  const Peaks& peaks = file.peaks;
  std::string text =
      "us: median over samples of the slowest rank's time, p10 .. p90 and n beside it. wait: part of it spent until the "
      "last\n"
      "rank began the stage. dispatch+combine: both alone, without experts between them.";
  if (peaks.measured_at.empty()) return text;
  return text +
         fmt::format(
             " SOL us: what the stage's bytes and flops,\n"
             "summed over the ranks, take at the peaks of this machine, which they share: memory {:.1f} GB/s, exchange "
             "{:.1f} GB/s,\nbf16 {:.2f} TFLOP/s, f32 {:.2f} TFLOP/s. Data that stays in caches can be faster than that.",
             std::max(peaks.copy_gbs, peaks.read_gbs), peaks.exchange_gbs, peaks.bf16_tflops, peaks.f32_tflops);
}

std::string stage_table(const ResultFile& file, const Record& record) {
  const StageRecord* layer = find_layer(record);
  if (!layer) return "";
  const size_t width = longest_variant(record);
  std::string text = fmt::format("tokens={} {} quant={} EP{} {}   n={}, {} (+-{:.1f} %)   correct: error {:.1e} <= {:.0e}\n",
                                 record.tokens, record.workload, file.quant, file.ranks, record.cache, layer->time.n,
                                 layer->time.converged ? "converged" : "not converged", layer->time.rel_half_width * 100,
                                 record.correctness.rel_error, record.correctness.tolerance);
  text += fmt::format(" {:<16} {:<{}} {:>9}  {:>8} .. {:<8} {:>5} {:>7} {:>6} {:>9} {:>6}  {}\n", "stage", "variant", width,
                      "us", "p10", "p90", "n", "%layer", "wait", "SOL us", "SOL", "bound");
  for (const StageRecord& stage : record.stages)
    text += fmt::format(" {:<16} {:<{}} {:>9}  {:>8} .. {:<8} {:>5} {:>7} {:>6} {:>9} {:>6}  {}\n", stage.stage,
                        stage.variant, width, microseconds(stage.time.median_us), microseconds(stage.time.p10_us),
                        microseconds(stage.time.p90_us), stage.time.n, percent(stage.time.median_us / layer->time.median_us),
                        percent(stage.wait_us / stage.time.median_us), limit_text(stage.sol_us), percent(stage.sol_share),
                        stage.bound);
  return text;
}

}  // namespace mixlane::bench
