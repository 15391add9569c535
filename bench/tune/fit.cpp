#include "tune/fit.hpp"

#include <array>

namespace mixlane::bench {

FittedLine fit_line(std::span<const SizedTime> samples) {
  constexpr int kTerms = 3;
  // Normal equations of terms that are scaled by the time, in units that keep them alike: us, 1000 groups, 1000 pairs.
  std::array<std::array<double, kTerms + 1>, kTerms> rows{};
  for (const SizedTime& sample : samples) {
    const std::array<double, kTerms> term{1 / sample.us, sample.groups / 1000 / sample.us, sample.pairs / 1000 / sample.us};
    for (int i = 0; i < kTerms; ++i) {
      for (int j = 0; j < kTerms; ++j) rows[i][j] += term[i] * term[j];
      rows[i][kTerms] += term[i];
    }
  }
  std::array<double, kTerms> solved{};
  std::array<bool, kTerms> known{};
  const auto original = rows;
  for (int i = 0; i < kTerms; ++i) {
    known[i] = rows[i][i] > 1e-9 * (original[i][i] + 1e-300);
    if (!known[i]) continue;
    for (int other = 0; other < kTerms; ++other) {
      if (other == i) continue;
      const double factor = rows[other][i] / rows[i][i];
      for (int j = 0; j <= kTerms; ++j) rows[other][j] -= factor * rows[i][j];
    }
  }
  for (int i = 0; i < kTerms; ++i)
    if (known[i]) solved[i] = rows[i][kTerms] / rows[i][i];
  return {solved[0], solved[1], solved[2]};
}

}  // namespace mixlane::bench
