#include "doctor/examine.hpp"

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "core/format.hpp"

namespace mixlane::bench {
namespace {

constexpr double kDefaultRunGib = 8;  // the default benchmark stays below

// The environment with answers for what is not in it.
class Facts {
 public:
  explicit Facts(const std::map<std::string, std::string>& facts) : facts_(facts) {}
  std::string text(const std::string& key) const {
    const auto found = facts_.find(key);
    return found == facts_.end() ? "unknown" : found->second;
  }
  // The number that the text starts with; 0 if it starts with none.
  double number(const std::string& key) const { return std::strtod(text(key).c_str(), nullptr); }
  bool mentions(const std::string& key, std::string_view word) const { return text(key).find(word) != std::string::npos; }
  bool known(const std::string& key) const { return text(key) != "unknown" && text(key) != "none"; }

 private:
  const std::map<std::string, std::string>& facts_;
};

Finding examine_processor(const Facts& facts) {
  Finding finding{"cpu", fmt::format("{}, {} cores", facts.text("cpu"), facts.text("cores")), Level::ok, ""};
  const double limit = facts.number("cgroup_cores");
  if (limit > 0 && limit < facts.number("cores")) {
    finding.level = Level::warn;
    finding.advice = fmt::format("the container may use {} of them: start it with more, or pass fewer --ranks", limit);
  } else if (facts.text("virtual_machine") == "yes") {
    finding.level = Level::note;
    finding.advice = "virtual machine: neighbours on the host may disturb measurements";
  }
  return finding;
}

Finding examine_instructions(const Facts& facts) {
  Finding finding{"simd", facts.text("instruction_sets"), Level::ok, ""};
  if (facts.mentions("instruction_sets", "amx_bf16")) {
    finding.advice = "bf16 products run on AMX";
  } else if (facts.mentions("instruction_sets", "bf16")) {
    finding.advice = "bf16 products run on vector units";
  } else {
    finding.level = Level::note;
    finding.advice = "no bf16 instructions: bf16 products are emulated in f32 and slower";
  }
  return finding;
}

Finding examine_memory(const Facts& facts) {
  Finding finding{"memory", fmt::format("{}, {} available", facts.text("memory"), facts.text("memory_available")), Level::ok,
                  ""};
  if (facts.known("memory_available") && facts.number("memory_available") < kDefaultRunGib) {
    finding.level = Level::warn;
    finding.advice =
        fmt::format("the default benchmark may need {:.0f} GiB: close something, or pick a smaller --model", kDefaultRunGib);
  }
  return finding;
}

Finding examine_load(const Facts& facts) {
  Finding finding{"load", fmt::format("{} runnable in the last minute", facts.text("load")), Level::ok, ""};
  if (facts.number("load") > 0.25 * std::max(1.0, facts.number("cores"))) {
    finding.level = Level::warn;
    finding.advice = "other programs compete for the cores: wait or stop them, or results will be noisy";
  }
  return finding;
}

Finding examine_clocks(const Facts& facts) {
  const std::string governor = facts.text("governor");
  Finding finding{"clocks", "governor " + governor, Level::ok, ""};
  if (!facts.known("governor")) {
    finding = {"clocks", "not controlled by this system", Level::note, "the clock may change during a run"};
  } else if (governor != "performance") {
    finding.level = Level::note;
    finding.advice = "steadier with: cpupower frequency-set -g performance";
  }
  return finding;
}

Finding examine_onednn(const Facts& facts) {
  if (facts.known("onednn")) return {"onednn", facts.text("onednn"), Level::ok, ""};
  return {"onednn", "not installed", Level::fail, "the experts stage needs it: apt-get install libdnnl-dev"};
}

Finding examine_mpi(const Facts& facts) {
  if (facts.known("openmpi")) return {"openmpi", facts.text("openmpi"), Level::ok, ""};
  return {"openmpi", "not installed", Level::note, "only needed to start ranks by mpirun: apt-get install openmpi-bin"};
}

Finding examine_build(const Facts& facts) {
  Finding finding{"mixlane",
                  fmt::format("{} commit {}, {}, {}", facts.text("mixlane"), facts.text("commit"), facts.text("compiler"),
                              facts.text("build")),
                  Level::ok, ""};
  if (facts.text("build") == "Debug" || facts.text("build").empty()) {
    finding.level = Level::warn;
    finding.advice = "not optimised, its times mean nothing: cmake --preset cpu && cmake --build --preset cpu";
  } else if (facts.mentions("commit", "modified")) {
    finding.level = Level::note;
    finding.advice = "uncommitted changes: the commit alone won't reproduce results";
  }
  return finding;
}

Finding peak_finding(const std::string& subject, double value, const std::string& text, const Peaks& peaks) {
  if (value > 0) return {subject, text, Level::ok, "saved as speed-of-light reference"};
  Finding finding{subject, "not measured", Level::note, ""};
  for (const std::string& reason : peaks.skipped)
    if (reason.starts_with(subject + ": ")) finding.advice = reason.substr(subject.size() + 2);
  if (subject == "bf16" || subject == "f32") finding.level = Level::warn;  // the experts stage needs what is missing here
  return finding;
}

}  // namespace

std::string_view name(Level level) {
  switch (level) {
    case Level::ok: return "ok";
    case Level::note: return "note";
    case Level::warn: return "WARN";
    case Level::fail: return "FAIL";
  }
  return "";
}

std::vector<Finding> examine(const std::map<std::string, std::string>& environment, const Peaks& peaks) {
  const Facts facts(environment);
  return {
      {"host", fmt::format("{}, {}, {}", facts.text("host"), facts.text("os"), facts.text("kernel")), Level::ok, ""},
      examine_processor(facts),
      examine_instructions(facts),
      examine_memory(facts),
      examine_load(facts),
      examine_clocks(facts),
      examine_onednn(facts),
      examine_mpi(facts),
      examine_build(facts),
      peak_finding("bandwidth", std::min(peaks.copy_gbs, peaks.read_gbs),
                   fmt::format("copy {:.1f} GB/s (read + written), read {:.1f} GB/s", peaks.copy_gbs, peaks.read_gbs),
                   peaks),
      peak_finding("exchange", peaks.exchange_gbs,
                   fmt::format("shared memory {:.1f} GB/s delivered, all ranks at once", peaks.exchange_gbs), peaks),
      peak_finding("bf16", peaks.bf16_tflops, fmt::format("matrix product {:.3f} TFLOP/s", peaks.bf16_tflops), peaks),
      peak_finding("f32", peaks.f32_tflops, fmt::format("matrix product {:.3f} TFLOP/s", peaks.f32_tflops), peaks),
  };
}

std::string to_text(const std::vector<Finding>& findings) {
  size_t width = 0, subjects = 9;
  for (const Finding& finding : findings) {
    width = std::max(width, std::min<size_t>(finding.text.size(), 100));
    subjects = std::max(subjects, finding.subject.size());
  }
  std::string text;
  for (const Finding& f : findings) {
    const std::string line =
        fmt::format(" {:<{}} {:<{}}  {:<4}  {}", f.subject, subjects, f.text, width, name(f.level), f.advice);
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

}  // namespace mixlane::bench
