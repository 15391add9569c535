// One MoE layer of a checkpoint: check everything, allocate, plan, fill.
#include "io/load_weights.hpp"

#include <algorithm>

#include "io/families.hpp"
#include "io/matrix_source.hpp"

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

void validate(const Source& source) {
  const Model& model = source.model;
  const Family& family = *source.layer.family;
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
  constexpr int kInterleaved = 2;  // even rows are the gate's, odd ones up's
  into.gate_up.push_back({model.hidden, {stacked_slab(source.checkpoint, fused, gate_up, expert, kInterleaved)}});
  into.down.push_back(
      {model.intermediate, {stacked_slab(source.checkpoint, stacked_name(source, family.down), down, expert, 1)}});
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

void plan_matrices(const MlpSources& from, const ExpertStorage& into, LoadPlan& plan) {
  mixlane::plan_matrices(from.gate_up, into.gate_up, plan);
  mixlane::plan_matrices(from.down, into.down, plan);
}

int64_t conversion_bytes(const WeightMemory& memory, const MlpSources& from, QuantFormat format) {
  return std::max(conversion_bytes(memory, from.gate_up, format), conversion_bytes(memory, from.down, format));
}

// --- vectors -------------------------------------------------------------------------------------------------------------

// Values [first, first + count) of a tensor, as f32.
Transfer plan_f32(const CheckpointTensor& tensor, int64_t first, int64_t count, int ways, const TensorView& into) {
  require_plain(tensor);
  const int64_t value_bytes = size_bytes(*tensor.entry->dtype, 1);
  return {{tensor, first * value_bytes, value_bytes, count, ways}, DType::f32, into.as<std::byte>()};
}

void plan_biases(const Source& source, const std::vector<int>& experts, const ExpertStorage& into, LoadPlan& plan) {
  const Family& family = *source.layer.family;
  const int64_t num_experts = source.model.routing.num_experts;
  const int64_t hidden = source.model.hidden, gate_up_rows = 2 * int64_t{source.model.intermediate};
  const CheckpointTensor gate_up = source.checkpoint.tensor(stacked_name(source, family.gate) + "_bias");
  const CheckpointTensor down = source.checkpoint.tensor(stacked_name(source, family.down) + "_bias");
  require_shape(gate_up, {num_experts, gate_up_rows});
  require_shape(down, {num_experts, hidden});
  for (size_t i = 0; i < experts.size(); ++i) {
    const auto local = static_cast<int64_t>(i);
    plan.transfers.push_back(
        plan_f32(gate_up, experts[i] * gate_up_rows, gate_up_rows, 2, expert_slice(into.gate_up_bias.view, local)));
    plan.transfers.push_back(plan_f32(down, experts[i] * hidden, hidden, 1, expert_slice(into.down_bias.view, local)));
  }
}

OwnedTensor plan_vector(WeightMemory& memory, const Source& source, std::string_view name, int64_t size, LoadPlan& plan) {
  const CheckpointTensor from = source.tensor(name);
  require_shape(from, {size});
  OwnedTensor vector = memory.make(*from.name, DType::f32, {size});
  plan.transfers.push_back(plan_f32(from, 0, size, 1, vector.view));
  return vector;
}

// bf16 as it is; f32 as it is, and f16 as f32.
OwnedTensor plan_router(WeightMemory& memory, const Source& source, LoadPlan& plan) {
  const CheckpointTensor from = source.tensor(source.layer.family->router);
  const int64_t rows = num_logits(source.model), cols = source.model.hidden;
  require_shape(from, {rows, cols});
  require_plain(from);
  const DType dtype = from.entry->dtype == DType::bf16 ? DType::bf16 : DType::f32;
  OwnedTensor router = memory.make(*from.name, dtype, {rows, cols});
  Transfer transfer = plan_f32(from, 0, rows * cols, 1, router.view);
  transfer.dtype = dtype;
  plan.transfers.push_back(transfer);
  return router;
}

OwnedTensor plan_shared_gate(WeightMemory& memory, const Source& source, LoadPlan& plan) {
  const CheckpointTensor from = source.tensor(source.layer.family->shared_gate);
  const int64_t hidden = source.model.hidden;
  require_shape(from, {1, hidden});
  if (from.entry->dtype != DType::bf16) fail(ErrorCode::unsupported, "{}: it must be BF16", to_string(from));
  OwnedTensor gate = memory.make(*from.name, DType::bf16, {hidden});
  plan.transfers.push_back(as_stored({from, 0, 2, hidden}, gate.view.as<std::byte>()));
  return gate;
}

// The router, what belongs to it, and the shared experts' gate.
void plan_rest(WeightMemory& memory, const Source& source, LoadPlan& plan, LayerWeights& loaded) {
  const Model& model = source.model;
  const Family& family = *source.layer.family;
  loaded.router = hand_over(plan_router(memory, source, plan), loaded);
  if (model.router_bias)
    loaded.router_bias = hand_over(plan_vector(memory, source, family.router_bias, num_logits(model), plan), loaded);
  if (model.correction_bias)
    loaded.weights.correction_bias =
        hand_over(plan_vector(memory, source, family.correction_bias, num_logits(model), plan), loaded);
  if (model.shared_gate) loaded.weights.shared_gate = hand_over(plan_shared_gate(memory, source, plan), loaded);
}

void require_memory(const WeightMemory& memory, const WeightsRequest& request, const MlpSources& experts,
                    const MlpSources& shared) {
  Model model = request.model;
  if (request.experts_only) model.shared_intermediate = 0;
  const auto num_experts = static_cast<int64_t>(request.experts.size());
  const int64_t scratch =
      std::max(conversion_bytes(memory, experts, request.format), conversion_bytes(memory, shared, request.format));
  memory.require(expert_weight_bytes(model, request.format, num_experts) + scratch,
                 fmt::format("{} experts of {} in {}{}", num_experts, model.name, name(request.format),
                             scratch > 0 ? " and their conversion" : ""));
}

}  // namespace

LayerWeights load_layer(WeightMemory& memory, const WeightsRequest& request, Checkpoint& checkpoint, int layer) {
  const Model& model = request.model;
  validate(request);
  const Source source{checkpoint, find_layer(checkpoint, layer), model};
  validate(source);
  const bool has_shared = model.num_shared_experts > 0 && !request.experts_only;
  const MlpSources experts = expert_sources(source, request.experts);
  MlpSources shared;
  if (has_shared) add_separate(source, std::string(shared_prefix(source)), model.shared_intermediate, shared);
  require_memory(memory, request, experts, shared);

  LayerWeights loaded;
  LoadPlan plan;
  const TensorMaker make = [&](std::string_view what, DType dtype, std::initializer_list<int64_t> shape) {
    return memory.make(what, dtype, shape);
  };
  const auto place = [&](std::string_view what, const MlpSources& from, int num_experts, int intermediate, bool biased) {
    const ExpertShape shape{num_experts, model.hidden, intermediate, model.activation.gated(), biased};
    const ExpertStorage storage = make_expert_storage(make, what, request.format, shape);
    plan_matrices(from, storage, plan);
    if (biased) plan_biases(source, request.experts, storage, plan);
    return storage.hand_over(loaded);
  };
  loaded.weights.experts =
      place("experts", experts, static_cast<int>(request.experts.size()), model.intermediate, model.expert_bias);
  if (has_shared) loaded.weights.shared = place("shared experts", shared, 1, model.shared_intermediate, false);
  if (!request.experts_only) plan_rest(memory, source, plan, loaded);

  memory.fetch(plan.transfers, 0);
  run_conversions(memory, plan.conversions);
  memory.finish();
  loaded.read_bytes = bytes_read(plan);
  return loaded;
}

struct WeightLoader::Impl {
  std::unique_ptr<WeightMemory> memory;
  Checkpoint checkpoint;
};

WeightLoader::WeightLoader(Context& context, const std::filesystem::path& checkpoint)
    : impl_(new Impl{open_weight_memory(context), Checkpoint(checkpoint)}) {}
WeightLoader::~WeightLoader() = default;

LayerWeights WeightLoader::load(const WeightsRequest& request, int layer) {
  return load_layer(*impl_->memory, request, impl_->checkpoint, layer);
}

LayerWeights load_weights(Context& context, const WeightsRequest& request, const std::filesystem::path& checkpoint,
                          int layer) {
  return WeightLoader(context, checkpoint).load(request, layer);
}

}  // namespace mixlane
