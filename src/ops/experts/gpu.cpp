// The experts variants that run on GPUs: the registry's lines.
#include "gpu/runtime.hpp"
#include "ops/experts/choose.hpp"
#include "ops/experts/gpu_variants.hpp"
#include "ops/experts/op.hpp"

namespace mixlane {

std::span<const Variant<ExpertsArgs>> experts_gpu_variants() {
  using namespace experts_gpu;
  static constexpr Variant<ExpertsArgs> kVariants[] = {
#if !defined(MIXLANE_HIP)
    {{"experts.wgmma", "Hopper's warpgroup products, both in one persistent launch; every format", gpu::kDeviceType},
     refuse_wgmma,
     run_wgmma,
     estimate_experts_wgmma},
    {{"experts.wgmma_narrow", "the same with tiles of at most 96 rows (fp8: 64), the weights on the left", gpu::kDeviceType},
     refuse_wgmma_narrow,
     run_wgmma_narrow,
     estimate_experts_wgmma_narrow},
#endif
    {{"experts.mma", "decodes every format to bf16 on the way to the tensor or matrix cores; any GPU", gpu::kDeviceType},
     refuse_mma,
     run_mma,
     estimate_experts_mma},
  };
  return kVariants;
}

}  // namespace mixlane
