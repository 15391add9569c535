// What doctor says of GPUs, from facts given to it: no GPU is needed here.
#include "doctor/gpu_survey.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "program.hpp"
#include "results/files.hpp"
#include "support/errors.hpp"

namespace mixlane::bench {
namespace {

GpuSurvey two_gpus() {
  GpuSurvey survey;
  for (int i = 0; i < 2; ++i) {
    GpuSurvey::Gpu gpu;
    gpu.device = {DeviceType::cuda, i};
    gpu.properties = {.name = "NVIDIA H200",
                      .architecture = "sm_90",
                      .num_multiprocessors = 132,
                      .wave_size = 32,
                      .memory_bytes = int64_t{140} << 30,
                      .l2_bytes = int64_t{60} << 20,
                      .driver_version = 13010,
                      .runtime_version = 13000};
    gpu.peaks.copy_gbs = 4263.4;
    gpu.peaks.read_gbs = 4100;
    gpu.peaks.bf16_tflops = 786;
    gpu.peaks.fp8_tflops = 1411;
    gpu.peaks.launch_us = 2.9;
    gpu.peaks.graph_node_us = 0.54;
    survey.gpus.push_back(gpu);
  }
  survey.pairs.push_back({{DeviceType::cuda, 0}, {DeviceType::cuda, 1}, {367, 338, 392, 0.69, ""}});
  survey.collectives = "NCCL 2.28.3";
  return survey;
}

const Finding& line(const std::vector<Finding>& findings, const std::string& subject) {
  const auto found = std::find_if(findings.begin(), findings.end(), [&](const Finding& f) { return f.subject == subject; });
  if (found == findings.end()) throw std::out_of_range(subject);
  return *found;
}

TEST(ExamineGpus, ListsThemWithTheirPeaks) {
  const std::vector<Finding> findings = examine(two_gpus());
  for (const Finding& finding : findings) EXPECT_EQ(finding.level, Level::ok) << finding.subject;
  EXPECT_EQ(line(findings, "gpu0").text,
            "NVIDIA H200, sm_90, 132 multiprocessors, 140.0 GiB, 60 MiB of L2, driver 13.1, runtime 13.0");
  EXPECT_EQ(line(findings, "gpu1.hbm").text, "copy 4263 GB/s (read + written), read 4100 GB/s");
  EXPECT_EQ(line(findings, "gpu0.bf16").text, "matrix product 786 TFLOP/s");
  EXPECT_EQ(line(findings, "gpu1.fp8").text, "matrix product 1411 TFLOP/s");
  EXPECT_EQ(line(findings, "gpu0.run").text, "empty kernel 2.90 us from the host, 0.54 us in a graph");
  EXPECT_EQ(line(findings, "gpu0-gpu1").text, "each way at once: write 367, read 338, copy engine 392 GB/s; flag 0.69 us");
  EXPECT_EQ(line(findings, "nccl").text, "NCCL 2.28.3");
}

TEST(ExamineGpus, SaysWhatIsMissingAndWhatToDo) {
  GpuSurvey survey = two_gpus();
  survey.gpus[0].peaks.fp8_tflops = 0;
  survey.gpus[0].peaks.skipped = {"fp8: this GPU is sm_80"};
  survey.gpus[1].peaks.copy_gbs = 0;
  survey.gpus[1].peaks.skipped = {"bandwidth: out of memory"};
  survey.pairs[0].peaks = {.problem = "device 0 can't reach the memory of device 1"};
  survey.no_kernel_times = "there is no libcupti.so.13; set MIXLANE_CUPTI";
  survey.collectives = "";
  const std::vector<Finding> findings = examine(survey);
  const auto expect = [&](const char* subject, Level level, const char* advice) {
    const Finding& found = line(findings, subject);
    EXPECT_EQ(found.level, level) << subject;
    EXPECT_NE(found.advice.find(advice), std::string::npos) << found.advice;
    EXPECT_NE(found.text.find("not "), std::string::npos) << found.text;
  };
  expect("gpu0.fp8", Level::note, "this GPU is sm_80");
  expect("gpu1.hbm", Level::note, "out of memory");
  expect("gpu0-gpu1", Level::warn, "can't reach");
  expect("profiler", Level::note, "MIXLANE_CUPTI");
  expect("nccl", Level::note, "libnccl2");
  EXPECT_EQ(line(findings, "gpu1.fp8").level, Level::ok) << "the other GPU's";
}

TEST(ExamineGpus, NoneIsOneLine) {
  GpuSurvey survey;
  survey.no_gpu = "no NVIDIA GPU: no driver";
  survey.advice = "install it";
  const std::vector<Finding> findings = examine(survey);
  ASSERT_EQ(findings.size(), 1u);
  EXPECT_EQ(to_text(findings), " gpu       no NVIDIA GPU: no driver  note  install it\n");
  EXPECT_EQ(to_json(survey).dump(), R"({"gpus":[],"pairs":[]})");
}

TEST(ExamineGpus, JsonHoldsThemAll) {
  const nlohmann::ordered_json json = to_json(two_gpus());
  ASSERT_EQ(json["gpus"].size(), 2u);
  EXPECT_EQ(json["gpus"][1]["device"], "cuda:1");
  EXPECT_EQ(json["gpus"][1]["driver"], "13.1");
  EXPECT_EQ(json["gpus"][0]["memory_bytes"], int64_t{140} << 30);
  EXPECT_EQ(json["gpus"][0]["peaks"]["fp8_tflops"], 1411);
  EXPECT_EQ(json["pairs"][0]["devices"], (std::vector<int>{0, 1}));
  EXPECT_EQ(json["pairs"][0]["flag_us"], 0.69);
}

class DoctorProgram : public test::BenchTest {};

// Wherever this runs: with GPUs, without, and with no GPU backend.
TEST_F(DoctorProgram, SpeaksOfGpusAndStoresThem) {
  const std::string file = (folder_ / "doctor.json").string();
  test::Program program({MIXLANE_PROGRAM, "doctor", "--ranks", "1", "--seconds", "0.1", "--json", file});
  program.wait();
  test::expect_mentions(program.out, {"\n bandwidth", "\n gpu"});
  EXPECT_EQ(program.err, "");
  const nlohmann::json json = nlohmann::json::parse(read_text_file(file));
  EXPECT_TRUE(json.at("gpus").is_array());
  EXPECT_TRUE(json.at("pairs").is_array());
  EXPECT_GT(json.at("peaks").at("copy_gbs").get<double>(), 0);
}

}  // namespace
}  // namespace mixlane::bench
