// What a build without a GPU backend answers.
#include "core/error.hpp"
#include "doctor/gpu_survey.hpp"

namespace mixlane::bench {

GpuSurvey survey_gpus(const Env&, const GpuPeakOptions&) {
  GpuSurvey survey;
  survey.no_gpu = "this build has no GPU backend";
  survey.advice = "for NVIDIA: cmake --preset cuda; for AMD: cmake --preset hip";
  return survey;
}

Peaks measure_gpu_peaks(const std::vector<Device>&, const GpuPeakOptions&) {
  fail(ErrorCode::unsupported, "GPU peaks: this build has no GPU backend");
}

}  // namespace mixlane::bench
