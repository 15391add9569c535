#include <algorithm>
#include <array>
#include <cstdlib>

#include "compare/compare.hpp"
#include "core/format.hpp"

namespace mixlane::bench {
namespace {

// The number that an environment text starts with; 0 if there is none.
double number_of(const ResultFile& file, const std::string& key) {
  const auto found = file.environment.find(key);
  return found == file.environment.end() ? 0 : std::strtod(found->second.c_str(), nullptr);
}

void warn_of_load(const char* side, const ResultFile& file, std::vector<std::string>& warnings) {
  const double load = number_of(file, "load"), cores = number_of(file, "cores");
  if (cores > 0 && load > cores)
    warnings.push_back(
        fmt::format("{} ({}) began on a busy machine: load {} on {} cores; measure both again when it is quiet", side,
                    file.stamp, load, cores));
}

struct PeakPair {
  const char* name;
  double a, b;
  bool known() const { return a > 0 && b > 0; }
  double factor() const { return std::max(a / b, b / a); }
};

std::array<PeakPair, 6> peak_pairs(const Peaks& a, const Peaks& b) {
  return {{{"memory copy", a.copy_gbs, b.copy_gbs},
           {"memory read", a.read_gbs, b.read_gbs},
           {"exchange", a.exchange_gbs, b.exchange_gbs},
           {"bf16 matrix", a.bf16_tflops, b.bf16_tflops},
           {"fp8 matrix", a.fp8_tflops, b.fp8_tflops},
           {"peer write", a.peer_write_gbs, b.peer_write_gbs}}};
}

}  // namespace

double machine_drift(const ResultFile& a, const ResultFile& b) {
  double factor = 1;
  for (const PeakPair& peak : peak_pairs(a.peaks, b.peaks))
    if (peak.known()) factor = std::max(factor, peak.factor());
  return factor - 1;
}

std::vector<std::string> run_warnings(const ResultFile& a, const ResultFile& b) {
  std::vector<std::string> warnings;
  warn_of_load("A", a, warnings);
  warn_of_load("B", b, warnings);
  for (const PeakPair& peak : peak_pairs(a.peaks, b.peaks))
    if (peak.known() && peak.factor() > 1 + kPeakTolerance)
      warnings.push_back(fmt::format("the machine itself differed between {} and {}: {} peak {:+.0f} %", a.stamp, b.stamp,
                                     peak.name, (peak.b / peak.a - 1) * 100));
  return warnings;
}

}  // namespace mixlane::bench
