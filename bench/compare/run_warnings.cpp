#include <fmt/format.h>

#include <cmath>
#include <cstdlib>

#include "compare/compare.hpp"

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

}  // namespace

std::vector<std::string> run_warnings(const ResultFile& a, const ResultFile& b) {
  std::vector<std::string> warnings;
  warn_of_load("A", a, warnings);
  warn_of_load("B", b, warnings);
  struct Row {
    const char* name;
    double a, b;
  };
  for (const Row& peak :
       {Row{"memory copy", a.peaks.copy_gbs, b.peaks.copy_gbs}, Row{"memory read", a.peaks.read_gbs, b.peaks.read_gbs},
        Row{"exchange", a.peaks.exchange_gbs, b.peaks.exchange_gbs},
        Row{"bf16 matrix", a.peaks.bf16_tflops, b.peaks.bf16_tflops}})
    if (peak.a > 0 && peak.b > 0 && std::abs(std::log(peak.b / peak.a)) > std::log1p(kPeakTolerance))
      warnings.push_back(fmt::format("the machine itself differed between {} and {}: {} peak {:+.0f} %", a.stamp, b.stamp,
                                     peak.name, (peak.b / peak.a - 1) * 100));
  return warnings;
}

}  // namespace mixlane::bench
