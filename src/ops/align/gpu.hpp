// The align variants that run on GPUs, as registry lines.
#pragma once

#include <span>

#include "core/registry.hpp"
#include "mixlane/align.hpp"

namespace mixlane {

// Best first.
std::span<const Variant<AlignArgs>> align_gpu_variants();

}  // namespace mixlane
