// The GPU variants of a build without a GPU backend.
#include "ops/quant/op.hpp"

namespace mixlane {

std::span<const Variant<QuantArgs>> quant_gpu_variants() { return {}; }
std::span<const Variant<DequantArgs>> dequant_gpu_variants() { return {}; }

}  // namespace mixlane
