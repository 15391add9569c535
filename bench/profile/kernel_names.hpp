// From the names of kernels, as the profiler has them, to the ids of variants.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace mixlane::bench {

// What a C++ compiler made of a name, undone; any other text as it is.
std::string demangled(const std::string& symbol);

// "align_multi_phase" of "void mixlane::align_gpu::align_multi_phase<...>(...)".
std::string_view kernel_name(std::string_view symbol);

// The variant that a kernel of this (demangled) symbol belongs to: "align.multi_phase" for align_multi_phase, and for
// align_multi_phase_tail too if `known` holds align.multi_phase and no longer id fits. By rule, so that a new kernel needs
// no entry: the id with its point as an underscore begins the kernel's name, on whole words. Where no known id does, a name
// that begins with a stage is taken as an id of its own. Empty for what is not Mixlane's kernel or follows no rule.
std::string variant_of_kernel(std::string_view symbol, std::span<const std::string> known);

}  // namespace mixlane::bench
