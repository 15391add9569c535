#include "ops/dispatch/layout.hpp"

#include <limits>

#include "core/error.hpp"
#include "core/math.hpp"

namespace mixlane {
namespace {

constexpr int kMaxRanks = 64;  // sets of ranks are words of 64 bits
constexpr int kMaxTopk = 32;
constexpr int64_t kLineBytes = 64;

int64_t rounded_up(int64_t bytes) { return (bytes + kLineBytes - 1) / kLineBytes * kLineBytes; }

void require_range(std::string_view field, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) fail(ErrorCode::invalid_argument, "{} is {}; it must be {}..{}", field, value, low, high);
}

std::vector<int> contiguous_owners(int num_experts, int num_ranks) {
  std::vector<int> owners;
  owners.reserve(static_cast<size_t>(num_experts));
  for (int r = 0; r < num_ranks; ++r)
    owners.insert(owners.end(), static_cast<size_t>(num_experts / num_ranks + (r < num_experts % num_ranks ? 1 : 0)), r);
  return owners;
}

}  // namespace

DType wire_dtype(WireFormat wire) {
  switch (wire) {
    case WireFormat::bf16: return DType::bf16;
    case WireFormat::fp8_1x128:
    case WireFormat::fp8_row: return DType::fp8_e4m3;
    case WireFormat::mxfp4: return DType::fp4_e2m1;
  }
  fail(ErrorCode::invalid_argument, "wire is {}; it must be one of WireFormat's values", static_cast<int>(wire));
}

ScaleGroup scale_group(WireFormat wire) {
  if (wire == WireFormat::mxfp4) return ScaleGroup::group_1x32;
  return wire == WireFormat::fp8_row ? ScaleGroup::row : ScaleGroup::group_1x128;
}

DType wire_dtype(CombineWire wire) {
  switch (wire) {
    case CombineWire::bf16: return DType::bf16;
    case CombineWire::fp8_1x128: return DType::fp8_e4m3;
    case CombineWire::f32: return DType::f32;
    case CombineWire::f64: return DType::f64;
  }
  fail(ErrorCode::invalid_argument, "combine_wire is {}; it must be one of CombineWire's values", static_cast<int>(wire));
}

DispatcherConfig completed(const DispatcherConfig& config, int num_ranks) {
  constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();
  require_range("num_ranks", num_ranks, 1, kMaxRanks);
  require_range("hidden", config.hidden, 1, 1 << 24);
  require_range("num_topk", config.num_topk, 1, kMaxTopk);
  require_range("num_experts", config.num_experts, 1, 1 << 24);
  require_range("max_tokens", config.max_tokens, 1, kMaxInt);
  require_range("capacity", config.capacity, 0, kMaxInt);
  require_range("num_multiprocessors", config.num_multiprocessors, 0, kMaxInt);
  const int64_t payload = size_bytes(wire_dtype(config.wire), config.hidden);
  if (payload % 16 != 0)
    fail(ErrorCode::invalid_argument, "hidden is {}: rows of {} {} bytes; make them a multiple of 16 bytes", config.hidden,
         payload, name(wire_dtype(config.wire)));

  DispatcherConfig result = config;
  if (result.capacity == 0) result.capacity = config.max_tokens;
  if (int64_t{result.capacity} * num_ranks * config.num_topk > kMaxInt)
    fail(ErrorCode::invalid_argument, "capacity {} x {} ranks x {} experts per token exceeds {} pairs; lower the capacity",
         result.capacity, num_ranks, config.num_topk, kMaxInt);
  if (result.expert_rank.empty()) result.expert_rank = contiguous_owners(config.num_experts, num_ranks);
  if (static_cast<int64_t>(result.expert_rank.size()) != config.num_experts)
    fail(ErrorCode::invalid_argument, "expert_rank has {} entries for {} experts; give one per expert or none",
         result.expert_rank.size(), config.num_experts);
  for (int e = 0; e < config.num_experts; ++e)
    if (result.expert_rank[e] < 0 || result.expert_rank[e] >= num_ranks)
      fail(ErrorCode::invalid_argument, "expert_rank[{}] is {}; there are ranks 0..{}", e, result.expert_rank[e],
           num_ranks - 1);
  return result;
}

WindowLayout::WindowLayout(const DispatcherConfig& config, int num_ranks_)
    : num_ranks(num_ranks_), capacity(config.capacity) {
  payload_bytes = size_bytes(wire_dtype(config.wire), config.hidden);
  if (config.wire == WireFormat::fp8_1x128) num_scales = ceil_div(config.hidden, 128);
  if (config.wire == WireFormat::fp8_row) num_scales = 1;
  if (config.wire == WireFormat::mxfp4) {
    num_scales = ceil_div(config.hidden, 32);
    scale_dtype = DType::e8m0;
  }
  scale_words = ceil_div(size_bytes(scale_dtype, num_scales), int64_t{4});
  ids_at = payload_bytes + 4 * scale_words;
  weights_at = ids_at + int64_t{4} * config.num_topk;
  record_bytes = weights_at + int64_t{4} * config.num_topk;
  record_stride = rounded_up(record_bytes);
  partial_bytes = partial_scales_at = size_bytes(wire_dtype(config.combine_wire), config.hidden);
  if (config.combine_wire == CombineWire::fp8_1x128) {
    partial_scales_at = ceil_div(partial_bytes, int64_t{4}) * 4;
    partial_bytes = partial_scales_at + 4 * ceil_div(config.hidden, 128);
  }
  partial_stride = rounded_up(partial_bytes);
  records_at = kControlBytes + int64_t{kNumLineKinds} * num_ranks * kLineBytes;
  partials_at = records_at + num_ranks * capacity * record_stride;
  total_bytes = partials_at + num_ranks * capacity * partial_stride;
}

ReceivedRows columns_of(const WindowLayout& layout, const DispatcherConfig& config, std::byte* first, Device device) {
  const int64_t rows = layout.num_ranks * layout.capacity;
  const auto column = [&](int64_t offset, DType dtype, int64_t width) {
    TensorView view(first + offset, dtype, {rows, width}, device);
    view.strides[0] = layout.record_stride * 8 / bits(dtype);
    return view;
  };
  ReceivedRows received;
  received.rows = column(0, wire_dtype(config.wire), config.hidden);
  if (layout.num_scales > 0) received.scales = column(layout.payload_bytes, layout.scale_dtype, layout.num_scales);
  received.topk_ids = column(layout.ids_at, DType::i32, config.num_topk);
  received.topk_weights = column(layout.weights_at, DType::f32, config.num_topk);
  return received;
}

}  // namespace mixlane
