#include "doctor/gpu_survey.hpp"

#include <dlfcn.h>

#include "core/format.hpp"
#include "profile/kernel_profile.hpp"

namespace mixlane::bench {
namespace {

// NCCL, or AMD's library of the same interface.
std::string collectives_version() {
  struct Library {
    const char* name;
    const char* file;
  };
  const Library library =
      gpu::kDeviceType == DeviceType::cuda ? Library{"NCCL", "libnccl.so.2"} : Library{"RCCL", "librccl.so.1"};
  void* handle = ::dlopen(library.file, RTLD_LAZY | RTLD_LOCAL);
  if (!handle) return "";
  using GetVersion = int(int*);
  const auto get_version = reinterpret_cast<GetVersion*>(::dlsym(handle, "ncclGetVersion"));
  int version = 0;
  std::string text = library.name;
  if (get_version && get_version(&version) == 0)
    text += fmt::format(" {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
  ::dlclose(handle);
  return text;
}

}  // namespace

GpuSurvey survey_gpus(const Env& env, const GpuPeakOptions& options) {
  GpuSurvey survey;
  const int num_gpus = gpu::num_devices(&survey.no_gpu);
  if (num_gpus == 0) {
    survey.advice = "GPU stages need one and its driver; everything else runs on the CPU";
    return survey;
  }
  for (int i = 0; i < num_gpus; ++i) {
    const Device device{gpu::kDeviceType, i};
    survey.gpus.push_back({device, gpu::properties(i), measure_gpu(device, options)});
  }
  for (int i = 0; i < num_gpus; ++i)
    for (int j = i + 1; j < num_gpus; ++j) {
      const Device first = survey.gpus[i].device, second = survey.gpus[j].device;
      survey.pairs.push_back({first, second, measure_pair(first, second, options)});
    }
  survey.no_kernel_times = KernelProfiler(env).missing();
  survey.collectives = collectives_version();
  return survey;
}

}  // namespace mixlane::bench
