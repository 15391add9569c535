// One MoE layer of a checkpoint: check everything, allocate, fill.
#include "io/load_weights.hpp"

#include <cstring>

#include "io/families.hpp"

namespace mixlane {
namespace {

// What is loaded, and from where.
struct Source {
  Checkpoint& checkpoint;
  CheckpointLayer layer;
  const Model& model;

  bool has(std::string_view name) const { return !name.empty() && checkpoint.has(layer.tensor(name)); }
  CheckpointTensor tensor(std::string_view name) const { return checkpoint.tensor(layer.tensor(name)); }
};

int64_t num_logits(const Model& model) { return model.routing.num_experts + model.routing.num_zero_experts; }

// A part that the model has and the checkpoint lacks, or the other way round, would silently change the result.
void require_agreement(const Source& source, std::string_view field, bool in_model, std::string_view tensor) {
  const bool in_checkpoint = source.has(tensor);
  if (in_model == in_checkpoint) return;
  fail(ErrorCode::invalid_argument, "checkpoint {}: {} '{}', but model {} says {} = {}", source.checkpoint.folder().string(),
       in_checkpoint ? "it has" : "it has no",
       tensor.empty() ? fmt::format("tensor of that kind ({})", source.layer.family->name) : source.layer.tensor(tensor),
       source.model.name, field, in_model);
}

std::string_view shared_prefix(const Source& source) {
  for (const std::string_view prefix : source.layer.family->shared_experts)
    if (!prefix.empty() && source.has(fmt::format("{}{}.weight", prefix, source.layer.family->up))) return prefix;
  return "";
}

std::string stacked_name(const Source& source, std::string_view matrix) {
  return source.layer.tensor(fmt::format("{}{}", source.layer.family->experts, matrix));
}

void validate(const Source& source, const WeightsRequest& request) {
  const Model& model = source.model;
  const Family& family = *source.layer.family;
  if (!model.missing.empty())
    fail(ErrorCode::invalid_argument, "model {}: {} unknown; give a model file with the values", model.name,
         fmt::join(model.missing, ", "));
  for (const int expert : request.experts)
    if (expert < 0 || expert >= model.routing.num_experts)
      fail(ErrorCode::invalid_argument, "expert {} of model {}; it has 0..{}", expert, model.name,
           model.routing.num_experts - 1);
  require_agreement(source, "correction_bias", model.correction_bias, family.correction_bias);
  require_agreement(source, "router_bias", model.router_bias, family.router_bias);
  require_agreement(source, "shared_gate", model.shared_gate, family.shared_gate);
  const bool stacked = family.layout == ExpertLayout::stacked_mxfp4;
  require_agreement(source, "expert_bias", model.expert_bias,
                    stacked ? fmt::format("{}{}_bias", family.experts, family.down) : "");
  const std::string_view shared = shared_prefix(source);
  require_agreement(source, "num_shared_experts > 0", model.num_shared_experts > 0,
                    shared.empty() ? "" : fmt::format("{}{}.weight", shared, family.up));
  if (stacked && !model.activation.gated())
    fail(ErrorCode::invalid_argument, "checkpoint {}: {} experts have a gate, but model {} has none",
         source.checkpoint.folder().string(), family.name, model.name);
}

// --- matrices ----------------------------------------------------------------------------------------------------------

struct MlpSources {
  std::vector<MatrixSource> gate_up;
  std::vector<MatrixSource> down;
};

// Appends one expert (or the shared ones together) with a tensor per matrix: "<begin>w1.weight".
void add_separate(const Source& source, const std::string& begin, int64_t intermediate, MlpSources& into) {
  const Family& family = *source.layer.family;
  const int64_t hidden = source.model.hidden;
  const auto slab = [&](std::string_view matrix, int64_t rows, int64_t cols) {
    return separate_slab(source.checkpoint, source.layer.tensor(fmt::format("{}{}.weight", begin, matrix)), rows, cols);
  };
  MatrixSource gate_up{hidden, {}};
  if (source.model.activation.gated()) gate_up.slabs.push_back(slab(family.gate, intermediate, hidden));
  gate_up.slabs.push_back(slab(family.up, intermediate, hidden));
  into.gate_up.push_back(std::move(gate_up));
  into.down.push_back({intermediate, {slab(family.down, hidden, intermediate)}});
}

void add_stacked(const Source& source, int expert, MlpSources& into) {
  const Family& family = *source.layer.family;
  const Model& model = source.model;
  const StackedShape gate_up{model.routing.num_experts, 2 * int64_t{model.intermediate}, model.hidden};
  const StackedShape down{model.routing.num_experts, model.hidden, model.intermediate};
  const std::string fused = stacked_name(source, family.gate);
  // Even rows are the gate's, odd ones up's.
  into.gate_up.push_back({model.hidden,
                          {stacked_slab(source.checkpoint, fused, gate_up, expert, 0, 2),
                           stacked_slab(source.checkpoint, fused, gate_up, expert, 1, 2)}});
  into.down.push_back(
      {model.intermediate, {stacked_slab(source.checkpoint, stacked_name(source, family.down), down, expert, 0, 1)}});
}

MlpSources expert_sources(const Source& source, const std::vector<int>& experts) {
  const Family& family = *source.layer.family;
  MlpSources sources;
  for (const int expert : experts) {
    if (family.layout == ExpertLayout::separate) {
      add_separate(source, fmt::format("{}{}.", family.experts, expert), source.model.intermediate, sources);
    } else {
      add_stacked(source, expert, sources);
    }
  }
  return sources;
}

void fill(Context& context, const Source& source, const MlpSources& from, ExpertStorage& into) {
  load_matrices(context, source.checkpoint, from.gate_up, into.gate_up);
  load_matrices(context, source.checkpoint, from.down, into.down);
}

// --- vectors -------------------------------------------------------------------------------------------------------------

void fill_biases(const Source& source, const std::vector<int>& experts, ExpertStorage& into) {
  const Family& family = *source.layer.family;
  const int64_t num_experts = source.model.routing.num_experts;
  const int64_t hidden = source.model.hidden, intermediate = source.model.intermediate;
  const CheckpointTensor gate_up = source.checkpoint.tensor(stacked_name(source, family.gate) + "_bias");
  const CheckpointTensor down = source.checkpoint.tensor(stacked_name(source, family.down) + "_bias");
  require_shape(gate_up, {num_experts, 2 * intermediate});
  require_shape(down, {num_experts, hidden});
  std::vector<float> interleaved(static_cast<size_t>(2 * intermediate));
  for (size_t i = 0; i < experts.size(); ++i) {
    auto* gate_up_row = expert_slice(into.gate_up_bias.view, static_cast<int64_t>(i)).as<float>();
    auto* down_row = expert_slice(into.down_bias.view, static_cast<int64_t>(i)).as<float>();
    load_f32(source.checkpoint, gate_up, experts[i] * 2 * intermediate, interleaved);
    for (int64_t row = 0; row < 2 * intermediate; ++row)
      gate_up_row[row % 2 * intermediate + row / 2] = interleaved[static_cast<size_t>(row)];
    load_f32(source.checkpoint, down, experts[i] * hidden, {down_row, static_cast<size_t>(hidden)});
  }
}

HostTensor load_vector(const Source& source, std::string_view name, int64_t size) {
  const CheckpointTensor from = source.tensor(name);
  require_shape(from, {size});
  HostTensor vector = make_host_tensor(*from.name, DType::f32, {size});
  load_f32(source.checkpoint, from, 0, {vector.view.as<float>(), static_cast<size_t>(size)});
  return vector;
}

// bf16 as it is; f32 as it is, and f16 as f32.
HostTensor load_router(const Source& source) {
  const CheckpointTensor from = source.tensor(source.layer.family->router);
  const int64_t rows = num_logits(source.model), cols = source.model.hidden;
  require_shape(from, {rows, cols});
  if (from.entry->dtype == DType::bf16) {
    HostTensor router = make_host_tensor(*from.name, DType::bf16, {rows, cols});
    const MappedRange range = source.checkpoint.map(from, 0, from.entry->bytes);
    std::memcpy(router.view.data, range.bytes().data(), range.bytes().size());
    return router;
  }
  HostTensor router = make_host_tensor(*from.name, DType::f32, {rows, cols});
  load_f32(source.checkpoint, from, 0, {router.view.as<float>(), static_cast<size_t>(rows * cols)});
  return router;
}

HostTensor load_shared_gate(const Source& source) {
  const CheckpointTensor from = source.tensor(source.layer.family->shared_gate);
  const int64_t hidden = source.model.hidden;
  require_shape(from, {1, hidden});
  if (from.entry->dtype != DType::bf16) fail(ErrorCode::unsupported, "{}: it must be BF16", to_string(from));
  HostTensor gate = make_host_tensor(*from.name, DType::bf16, {hidden});
  const MappedRange range = source.checkpoint.map(from, 0, from.entry->bytes);
  std::memcpy(gate.view.data, range.bytes().data(), range.bytes().size());
  return gate;
}

}  // namespace

LayerWeights load_layer(Context& context, const WeightsRequest& request, Checkpoint& checkpoint, int layer) {
  const Model& model = request.model;
  const Source source{checkpoint, find_layer(checkpoint, layer), model};
  const Family& family = *source.layer.family;
  validate(source, request);

  const MlpSources experts = expert_sources(source, request.experts);
  MlpSources shared;
  if (model.num_shared_experts > 0)
    add_separate(source, std::string(shared_prefix(source)), model.shared_intermediate, shared);

  LayerWeights loaded;
  loaded.router = hand_over(load_router(source), loaded);
  if (model.router_bias) loaded.router_bias = hand_over(load_vector(source, family.router_bias, num_logits(model)), loaded);
  if (model.correction_bias)
    loaded.weights.correction_bias = hand_over(load_vector(source, family.correction_bias, num_logits(model)), loaded);
  if (model.shared_gate) loaded.weights.shared_gate = hand_over(load_shared_gate(source), loaded);

  const bool gated = model.activation.gated();
  ExpertStorage storage = make_expert_storage("experts", request.format, static_cast<int>(request.experts.size()),
                                              model.hidden, model.intermediate, gated, model.expert_bias);
  fill(context, source, experts, storage);
  if (model.expert_bias) fill_biases(source, request.experts, storage);
  loaded.weights.experts = storage.hand_over(loaded);
  if (model.num_shared_experts > 0) {
    ExpertStorage shared_storage =
        make_expert_storage("shared experts", request.format, 1, model.hidden, model.shared_intermediate, gated, false);
    fill(context, source, shared, shared_storage);
    loaded.weights.shared = shared_storage.hand_over(loaded);
  }
  return loaded;
}

LayerWeights load_weights(Context& context, const WeightsRequest& request, const std::filesystem::path& checkpoint,
                          int layer) {
  Checkpoint opened(checkpoint);
  return load_layer(context, request, opened, layer);
}

}  // namespace mixlane
