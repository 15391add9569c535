#include <cmath>

#include "core/numeric.hpp"
#include "core/parallel.hpp"
#include "core/simd.hpp"
#include "ops/addend/op.hpp"

namespace mixlane {
namespace {

constexpr int64_t kGrainValues = 1 << 15;  // per thread, below which starting one costs more than it saves

// f32 sum in 16 lanes, so that the compiler may vectorise it without reordering anything.
MIXLANE_CPU_LEVELS float dot(const uint16_t* a, const uint16_t* b, int64_t count) {
  constexpr int kLanes = 16;
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += bf16_to_f32(a[i + lane]) * bf16_to_f32(b[i + lane]);
  float sum = 0.0f;
  for (const float lane : lanes) sum += lane;
  for (; i < count; ++i) sum += bf16_to_f32(a[i]) * bf16_to_f32(b[i]);
  return sum;
}

MIXLANE_CPU_LEVELS void scale_row(float* out, const uint16_t* row, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = bf16_to_f32(row[i]) * factor;
}

MIXLANE_CPU_LEVELS void add_scaled_row(float* out, const uint16_t* row, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] += bf16_to_f32(row[i]) * factor;
}

}  // namespace

void launch_addend_cpu(Context& context, const AddendArgs& args, Stream) {
  const int64_t num_tokens = args.hidden.shape[0], size = args.hidden.shape[1];
  const auto* hidden = args.hidden.as<uint16_t>();
  const auto* shared = args.shared_rows.as<uint16_t>();
  const auto* gate = args.shared_gate.as<uint16_t>();
  const auto* zero_weights = args.zero_weights.as<float>();
  parallel_ranges(context.num_threads(), num_tokens, kGrainValues / std::max<int64_t>(size, 1),
                  [&](int64_t begin, int64_t end) {
                    for (int64_t t = begin; t < end; ++t) {
                      const uint16_t* row = hidden + t * args.hidden.strides[0];
                      float* out = args.output.as<float>() + t * size;
                      if (shared) {
                        const float factor = gate ? 1.0f / (1.0f + std::exp(-dot(row, gate, size))) : 1.0f;
                        scale_row(out, shared + t * args.shared_rows.strides[0], factor, size);
                        if (zero_weights) add_scaled_row(out, row, zero_weights[t], size);
                      } else {
                        scale_row(out, row, zero_weights[t], size);
                      }
                    }
                  });
}

}  // namespace mixlane
