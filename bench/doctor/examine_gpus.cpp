#include <nlohmann/json.hpp>

#include "core/format.hpp"
#include "doctor/gpu_survey.hpp"
#include "doctor/probes.hpp"

namespace mixlane::bench {
namespace {

// CUDA's 13000 -> "13.0"; HIP's 60443484 (major * 10^7 + minor * 10^5 + patch) -> "6.4".
std::string version_text(DeviceType type, int version) {
  return type == DeviceType::hip ? fmt::format("{}.{}", version / 10'000'000, version / 100'000 % 100)
                                 : fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

std::string reason(const Peaks& peaks, const std::string& subject) {
  for (const std::string& text : peaks.skipped)
    if (text.starts_with(subject + ": ")) return text.substr(subject.size() + 2);
  return "";
}

Finding measured(const std::string& line, const std::string& text, const Peaks& peaks, const std::string& subject,
                 double value) {
  if (value > 0) return {line, text, Level::ok, ""};
  return {line, "not measured", Level::note, reason(peaks, subject)};
}

Finding properties_finding(const GpuSurvey::Gpu& gpu, const std::string& line) {
  const gpu::DeviceProperties& p = gpu.properties;
  return {line,
          fmt::format("{}, {}, {} multiprocessors, {}, {:.0f} MiB of L2, driver {}, runtime {}", p.name, p.architecture,
                      p.num_multiprocessors, gibibytes(static_cast<double>(p.memory_bytes)),
                      static_cast<double>(p.l2_bytes) / (1 << 20), version_text(gpu.device.type, p.driver_version),
                      version_text(gpu.device.type, p.runtime_version)),
          Level::ok, ""};
}

void add_gpu(const GpuSurvey::Gpu& gpu, std::vector<Finding>& findings) {
  const std::string line = fmt::format("gpu{}", gpu.device.index);
  const Peaks& p = gpu.peaks;
  findings.push_back(properties_finding(gpu, line));
  findings.push_back(measured(line + ".hbm",
                              fmt::format("copy {:.0f} GB/s (read + written), read {:.0f} GB/s", p.copy_gbs, p.read_gbs), p,
                              "bandwidth", p.copy_gbs));
  for (const auto& [name, tflops] : {std::pair{"bf16", p.bf16_tflops}, std::pair{"fp8", p.fp8_tflops}})
    findings.push_back(
        measured(fmt::format("{}.{}", line, name), fmt::format("matrix product {:.0f} TFLOP/s", tflops), p, name, tflops));
  findings.push_back(measured(
      line + ".run", fmt::format("empty kernel {:.2f} us from the host, {:.2f} us in a graph", p.launch_us, p.graph_node_us),
      p, "launch", p.launch_us));
}

Finding pair_finding(const GpuSurvey::Pair& pair) {
  const std::string line = fmt::format("gpu{}-gpu{}", pair.first.index, pair.second.index);
  const PeerPeaks& p = pair.peaks;
  if (!p.problem.empty())
    return {line, "not measured", Level::warn, p.problem + "; ranks on these GPUs can't exchange rows in place"};
  return {line,
          fmt::format("each way at once: write {:.0f}, read {:.0f}, copy engine {:.0f} GB/s; flag {:.2f} us", p.write_gbs,
                      p.read_gbs, p.copy_engine_gbs, p.flag_us),
          Level::ok, ""};
}

nlohmann::ordered_json to_json(const GpuSurvey::Gpu& gpu) {
  const gpu::DeviceProperties& p = gpu.properties;
  return {{"device", fmt::format("{}:{}", name(gpu.device.type), gpu.device.index)},
          {"name", p.name},
          {"architecture", p.architecture},
          {"num_multiprocessors", p.num_multiprocessors},
          {"memory_bytes", p.memory_bytes},
          {"l2_bytes", p.l2_bytes},
          {"driver", version_text(gpu.device.type, p.driver_version)},
          {"runtime", version_text(gpu.device.type, p.runtime_version)},
          {"peaks", to_json(gpu.peaks)}};
}

nlohmann::ordered_json to_json(const GpuSurvey::Pair& pair) {
  const PeerPeaks& p = pair.peaks;
  return {{"devices", {pair.first.index, pair.second.index}},
          {"write_gbs", p.write_gbs},
          {"read_gbs", p.read_gbs},
          {"copy_engine_gbs", p.copy_engine_gbs},
          {"flag_us", p.flag_us},
          {"problem", p.problem}};
}

}  // namespace

std::vector<Finding> examine(const GpuSurvey& survey) {
  if (survey.gpus.empty()) return {{"gpu", survey.no_gpu, Level::note, survey.advice}};
  std::vector<Finding> findings;
  for (const GpuSurvey::Gpu& gpu : survey.gpus) add_gpu(gpu, findings);
  for (const GpuSurvey::Pair& pair : survey.pairs) findings.push_back(pair_finding(pair));
  if (survey.no_kernel_times.empty())
    findings.push_back({"profiler", "found", Level::ok, "bench can say which kernel takes how long"});
  else
    findings.push_back({"profiler", "not found", Level::note, survey.no_kernel_times});
  if (survey.collectives.empty())
    findings.push_back({"nccl", "not found", Level::note,
                        "only baselines need it: apt-get install libnccl2 (NVIDIA's repository), librccl1 for AMD"});
  else
    findings.push_back({"nccl", survey.collectives, Level::ok, ""});
  return findings;
}

nlohmann::ordered_json to_json(const GpuSurvey& survey) {
  nlohmann::ordered_json json = {{"gpus", nlohmann::ordered_json::array()}, {"pairs", nlohmann::ordered_json::array()}};
  for (const GpuSurvey::Gpu& gpu : survey.gpus) json["gpus"].push_back(to_json(gpu));
  for (const GpuSurvey::Pair& pair : survey.pairs) json["pairs"].push_back(to_json(pair));
  return json;
}

}  // namespace mixlane::bench
