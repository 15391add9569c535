// The reader of model files: any bytes give a model whose fields keep their promises, or a bad_format error.
#include <cstdint>
#include <cstdlib>

#include "mixlane/model.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace mixlane;
  Model model;
  try {
    model = parse_model({reinterpret_cast<const char*>(data), size}, "fuzz.json");
  } catch (const Error& error) {
    if (error.code() != ErrorCode::bad_format) std::abort();
    return 0;
  }
  if (!model.missing.empty()) return 0;
  const RoutingConfig& routing = model.routing;
  const bool holds = model.hidden > 0 && model.intermediate > 0 && routing.num_experts > 0 && routing.num_topk > 0 &&
                     routing.num_topk <= routing.num_experts + routing.num_zero_experts &&
                     routing.num_experts % routing.num_groups == 0 && routing.topk_groups <= routing.num_groups &&
                     (model.num_shared_experts > 0) == (model.shared_intermediate > 0);
  if (!holds) std::abort();
  return 0;
}
