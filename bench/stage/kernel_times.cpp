#include "stage/kernel_times.hpp"

#include <algorithm>

#include "profile/kernel_names.hpp"

namespace mixlane::bench {

std::vector<KernelTime> attribute_kernels(const KernelProfile& profile, std::span<const std::string> known, int num_calls) {
  std::vector<KernelTime> times;
  for (const KernelSpan& span : profile.spans) {
    const std::string variant = variant_of_kernel(span.symbol, known);
    auto entry = std::find_if(times.begin(), times.end(), [&](const KernelTime& time) { return time.variant == variant; });
    if (entry == times.end()) entry = times.insert(times.end(), {variant, 0});
    entry->us += span.us() / num_calls;
  }
  std::stable_partition(times.begin(), times.end(), [](const KernelTime& time) { return !time.variant.empty(); });
  return times;
}

}  // namespace mixlane::bench
