// Random weights of one layer: sum the sizes, check that they fit, allocate, fill.
#include <sys/mman.h>

#include <algorithm>
#include <cmath>

#include "core/memory_budget.hpp"
#include "core/parallel.hpp"
#include "io/expert_storage.hpp"
#include "io/random_source.hpp"
#include "ops/quant/formats.hpp"

namespace mixlane {
namespace {

// Part of a stream's key: never renumber, or the same seed gives other weights.
enum TensorId : int { kGateUp, kDown, kGateUpBias, kDownBias, kSharedGate, kCorrectionBias };
constexpr int64_t kSharedExpert = -1;  // in place of an expert id
constexpr int64_t kWholeLayer = -2;

// Enough that an error in their handling shows, too little to decide what comes out.
constexpr float kBiasStddev = 0.1f;
constexpr float kCorrectionStddev = 0.01f;

// Rows that are made in bf16 before they are quantised, per thread: a multiple of the 128 that share a scale.
constexpr int64_t kScratchRows = 256;

struct Generator {
  Context& context;
  uint64_t seed;
  NormalTable normal{};

  // The same values on every rank: a function of the expert's id in the whole group, the tensor and the position.
  uint64_t key(int64_t expert, TensorId tensor) const { return stream_key(seed, expert, tensor); }
};

void require_memory(const WeightsRequest& request) {
  const Model& model = request.model;
  const auto num_experts = static_cast<int64_t>(request.experts.size());
  const int64_t needed = expert_weight_bytes(model, request.format, num_experts);
  const int64_t free = free_memory_bytes();
  if (needed > free)
    fail(ErrorCode::out_of_memory,
         "{} experts of {} need {} bytes per rank, {} are free; use more ranks on more machines, a smaller quantisation "
         "(mxfp4 takes about a quarter of bf16) or a smaller model",
         num_experts, model.name, needed, free);
}

// Weights are read in long runs: large pages save most of the address translation.
void prefer_large_pages(const OwnedTensor& tensor) {
  constexpr uintptr_t kPage = 4096;
  if (!tensor.memory) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(tensor.memory.get()) + kPage - 1) / kPage * kPage;
  const uintptr_t end =
      (reinterpret_cast<uintptr_t>(tensor.memory.get()) + static_cast<uintptr_t>(tensor.bytes)) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a hint; refusal is fine
}

// Values [first, first + count) of a stream into `out`, on every thread.
void fill_values(const Generator& generator, const std::vector<uint16_t>& table, uint64_t key, int64_t first, uint16_t* out,
                 int64_t count) {
  constexpr int64_t kGrain = 1 << 16;
  parallel_ranges(generator.context.num_threads(), (count + 3) / 4, kGrain / 4, [&](int64_t begin, int64_t end) {
    fill_random(table, key, first + 4 * begin, out + 4 * begin, std::min(4 * end, count) - 4 * begin);
  });
}

// Rows [begin, begin + count) of a matrix [rows, ...]; of scales that stand for `unit` rows each.
TensorView rows_of(const TensorView& matrix, int64_t begin, int64_t count, int64_t unit) {
  TensorView part = matrix;
  part.data = matrix.as<std::byte>() + size_bytes(matrix.dtype, begin / unit * matrix.strides[0]);
  part.shape[0] = (count + unit - 1) / unit;
  return part;
}

// One expert's matrix in a quantised format: rows are made in bf16, some at a time, and quantised by the public op.
void fill_quantised(Generator& generator, const std::vector<uint16_t>& table, uint64_t key, QuantFormat format,
                    const TensorView& values, const TensorView& scales) {
  const int64_t rows = values.shape[0], cols = values.shape[1];
  const int64_t step = std::min(kScratchRows * generator.context.num_threads(), rows);
  std::vector<uint16_t> scratch(static_cast<size_t>(step * cols));
  for (int64_t begin = 0; begin < rows; begin += step) {
    const int64_t count = std::min(step, rows - begin);
    fill_values(generator, table, key, begin * cols, scratch.data(), count * cols);
    QuantArgs args;
    args.input = ConstTensorView(scratch.data(), DType::bf16, {count, cols});
    args.group = weight_group(format);
    args.output = rows_of(values, begin, count, 1);
    args.scales = rows_of(scales, begin, count, format == QuantFormat::fp8_block ? 128 : 1);
    quantize(generator.context, args);
  }
}

void fill_matrices(Generator& generator, const std::vector<int64_t>& expert_ids, TensorId tensor,
                   const ExpertMatrices& matrices) {
  prefer_large_pages(matrices.values);
  const std::vector<uint16_t> table = generator.normal.bf16(1.0f / std::sqrt(static_cast<float>(matrices.cols())));
  for (size_t e = 0; e < expert_ids.size(); ++e) {
    const uint64_t key = generator.key(expert_ids[e], tensor);
    const TensorView values = expert_slice(matrices.values.view, static_cast<int64_t>(e));
    if (matrices.format == QuantFormat::none) {
      fill_values(generator, table, key, 0, values.as<uint16_t>(), values.num_values());
    } else {
      fill_quantised(generator, table, key, matrices.format, values,
                     expert_slice(matrices.scales.view, static_cast<int64_t>(e)));
    }
  }
}

void fill_f32(const Generator& generator, uint64_t key, float stddev, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = generator.normal[random_index(key, i)] * stddev;
}

void fill_biases(const Generator& generator, const std::vector<int64_t>& expert_ids, TensorId tensor,
                 const OwnedTensor& bias) {
  if (!bias.memory) return;
  const int64_t count = bias.view.shape[1];
  for (size_t e = 0; e < expert_ids.size(); ++e)
    fill_f32(generator, generator.key(expert_ids[e], tensor), kBiasStddev,
             bias.view.as<float>() + static_cast<int64_t>(e) * count, count);
}

ExpertWeights make_experts(Generator& generator, const WeightsRequest& request, const std::vector<int64_t>& expert_ids,
                           int intermediate, bool biased, LayerWeights& keeper) {
  const auto make = [](std::string_view what, DType dtype, std::initializer_list<int64_t> shape) {
    return make_host_tensor(what, dtype, shape);
  };
  const ExpertShape shape{static_cast<int>(expert_ids.size()), request.model.hidden, intermediate,
                          request.model.activation.gated(), biased};
  const ExpertStorage storage = make_expert_storage(make, request.model.name, request.format, shape);
  fill_matrices(generator, expert_ids, kGateUp, storage.gate_up);
  fill_matrices(generator, expert_ids, kDown, storage.down);
  fill_biases(generator, expert_ids, kGateUpBias, storage.gate_up_bias);
  fill_biases(generator, expert_ids, kDownBias, storage.down_bias);
  return storage.hand_over(keeper);
}

}  // namespace

LayerWeights random_weights(Context& context, const WeightsRequest& request, uint64_t seed) {
  validate(request);
  require_memory(request);
  const Model& model = request.model;
  Generator generator{context, seed};
  LayerWeights result;
  const std::vector<int64_t> expert_ids(request.experts.begin(), request.experts.end());
  result.weights.experts = make_experts(generator, request, expert_ids, model.intermediate, model.expert_bias, result);
  if (model.shared_intermediate > 0)
    result.weights.shared = make_experts(generator, request, {kSharedExpert}, model.shared_intermediate, false, result);
  if (model.shared_gate) {
    const OwnedTensor gate = make_host_tensor("shared_gate", DType::bf16, {model.hidden});
    fill_random(generator.normal.bf16(1.0f / std::sqrt(static_cast<float>(model.hidden))),
                generator.key(kWholeLayer, kSharedGate), 0, gate.view.as<uint16_t>(), model.hidden);
    result.weights.shared_gate = hand_over(gate, result);
  }
  if (model.correction_bias) {
    const int64_t count = model.routing.num_experts + model.routing.num_zero_experts;
    const OwnedTensor bias = make_host_tensor("correction_bias", DType::f32, {count});
    fill_f32(generator, generator.key(kWholeLayer, kCorrectionBias), kCorrectionStddev, bias.view.as<float>(), count);
    result.weights.correction_bias = hand_over(bias, result);
  }
  return result;
}

}  // namespace mixlane
