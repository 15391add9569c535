// The experts variants that run on GPUs: the registry's lines.
#include <array>
#include <utility>

#include "gpu/runtime.hpp"
#include "ops/experts/choose.hpp"
#include "ops/experts/gpu_variants.hpp"
#include "ops/experts/op.hpp"

namespace mixlane {
namespace {

using namespace experts_gpu;
using ExpertsVariant = Variant<ExpertsArgs>;

constexpr ExpertsVariant kMma{
    {"experts.mma", "decodes every format to bf16 on the way to the tensor or matrix cores; any GPU", gpu::kDeviceType},
    refuse_mma,
    run_mma,
    estimate_experts_mma};

#if !defined(MIXLANE_HIP)

template <size_t kIndex>
constexpr ExpertsVariant wgmma_variant() {
  constexpr const NamedWgmmaConfig& kNamed = kWgmmaConfigs[kIndex];
  return {{kNamed.id, kNamed.summary, gpu::kDeviceType},
          [](const Context& context, const ExpertsArgs& args) { return refuse_wgmma(context, args, kNamed.config); },
          [](Context& context, const ExpertsArgs& args, Stream stream) { run_wgmma(context, args, kNamed.config, stream); },
          [](const ExpertsArgs& args, int num_multiprocessors) {
            return estimate_wgmma_us(wgmma_shape(args, num_multiprocessors), kNamed.config);
          }};
}

template <size_t... kIndices>
constexpr auto all_variants(std::index_sequence<kIndices...>) {
  return std::array{wgmma_variant<kIndices>()..., kMma};
}
constexpr auto kVariants = all_variants(std::make_index_sequence<kWgmmaConfigs.size()>());

#else

constexpr std::array kVariants{kMma};

#endif

}  // namespace

std::span<const Variant<ExpertsArgs>> experts_gpu_variants() { return kVariants; }

}  // namespace mixlane
