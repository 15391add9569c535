// Rank 0's experts on the pairs that the workload gives them: slots as align lays them out, rows as the format wants them.
#include <array>
#include <cmath>

#include "core/numeric.hpp"
#include "mixlane/align.hpp"
#include "mixlane/weights.hpp"
#include "ops/experts/op.hpp"
#include "ops/quant/formats.hpp"
#include "ops/quant/op.hpp"
#include "stage/checkpoint_experts.hpp"
#include "stage/device_tensor.hpp"
#include "stage/op_stage.hpp"

namespace mixlane::bench {
namespace {

constexpr int kSlotBlock = 16;       // slots of an expert are padded to it
constexpr int kDistinctExperts = 2;  // whose weights all others repeat, in turn: random values take their time
constexpr int kCheckedSlots = 6;

// Sums in another order: activated values that are quantised may fall on the other side of a tie.
double tolerance(QuantFormat format) { return quantises_activations(format) ? 1.5e-2 : 4e-3; }

// One set's slots, on the host.
struct SlotTable {
  std::vector<int32_t> pairs, counts, offsets;
};

class ExpertsStage final : public OpStage<ExpertsArgs> {
 public:
  explicit ExpertsStage(const StageSetup& setup);

  std::string options() const override { return fmt::format("experts={} block={}", num_local_, kSlotBlock); }
  int num_sets() const override { return num_sets_; }
  ExpertsArgs args(int set) const override;
  void poison(Stream stream, int set) override { output_.poison(stream, set); }
  Correctness verify(Stream stream, int set) override;
  StageWork work() const override;

 private:
  const StageCell& cell() const { return inputs_.cell(); }
  int64_t num_pairs() const { return int64_t{cell().tokens} * cell().shape.routing.num_topk; }
  int64_t touched_weight_bytes() const;
  SlotTable make_slots(int set) const;
  void quantise_rows();
  // `count` experts from the two that are made.
  DeviceTensor spread(const ConstTensorView& made, int count) const;
  void place_weights();
  ExpertWeights host_expert(int expert) const;
  std::vector<double> expected_row(int expert, int64_t row) const;

  StageInputs& inputs_;
  CheckpointExperts* checkpoint_;  // nullptr: random weights
  int num_local_;
  int num_sets_ = 1;
  LayerWeights made_;
  std::array<DeviceTensor, 6> weights_;  // gate_up and down: values, scales, bias
  ExpertWeights on_device_;
  std::vector<std::byte> codes_, scales_;  // of the rows, if they are quantised
  ConstTensorView host_rows_, host_scales_;
  DeviceTensor rows_, row_scales_;
  std::vector<SlotTable> slots_;
  DeviceTensor pairs_, counts_, offsets_, output_;
};

ExpertsStage::ExpertsStage(const StageSetup& setup)
    : OpStage(setup.context, select_experts, run_experts),
      inputs_(setup.inputs),
      checkpoint_(setup.checkpoint),
      num_local_(cell().shape.routing.num_experts / cell().num_ranks) {
  place_weights();
  quantise_rows();

  slots_.push_back(make_slots(0));
  num_sets_ = setup.num_sets(touched_weight_bytes());
  for (int set = 1; set < num_sets_; ++set) slots_.push_back(make_slots(set));
  const Device device = context_.device();
  const auto capacity = static_cast<int64_t>(slots_[0].pairs.size());
  pairs_ = DeviceTensor(device, DType::i32, {capacity}, num_sets_);
  counts_ = DeviceTensor(device, DType::i32, {num_local_}, num_sets_);
  offsets_ = DeviceTensor(device, DType::i32, {num_local_ + 1}, num_sets_);
  output_ = DeviceTensor(device, DType::bf16, {capacity, cell().shape.hidden}, num_sets_);
  const gpu::OwnedStream stream(device);
  for (int set = 0; set < num_sets_; ++set) {
    const SlotTable& table = slots_[static_cast<size_t>(set)];
    gpu::copy(pairs_.view(set).data, table.pairs.data(), pairs_.bytes(), stream.get());
    gpu::copy(counts_.view(set).data, table.counts.data(), counts_.bytes(), stream.get());
    gpu::copy(offsets_.view(set).data, table.offsets.data(), offsets_.bytes(), stream.get());
  }
  gpu::synchronize(stream.get());
}

// Sets differ in which experts the pairs go to, so that the weights of few tokens are other ones each time.
SlotTable ExpertsStage::make_slots(int set) const {
  const std::span<const int32_t> ids = inputs_.topk_ids();
  std::vector<int32_t> local(ids.begin(), ids.end());
  for (int32_t& id : local)
    id = id < 0 || id >= num_local_ ? -1 : static_cast<int32_t>((id + int64_t{set} * 5) % num_local_);
  const int64_t capacity = align_capacity(num_pairs(), num_local_, kSlotBlock);
  SlotTable table;
  table.pairs.resize(static_cast<size_t>(capacity));
  table.counts.resize(static_cast<size_t>(num_local_));
  table.offsets.resize(static_cast<size_t>(num_local_) + 1);
  std::vector<int32_t> num_padded(2);
  align(inputs_.cpu(), {.topk_ids = {local.data(), DType::i32, {cell().tokens, cell().shape.routing.num_topk}},
                        .num_experts = num_local_,
                        .block = kSlotBlock,
                        .sorted_pairs = {table.pairs.data(), DType::i32, {capacity}},
                        .num_padded = {num_padded.data(), DType::i32, {2}},
                        .expert_counts = {table.counts.data(), DType::i32, {num_local_}},
                        .expert_offsets = {table.offsets.data(), DType::i32, {num_local_ + 1}}});
  return table;
}

void ExpertsStage::quantise_rows() {
  const int64_t rows = cell().tokens, cols = cell().shape.hidden;
  host_rows_ = {inputs_.hidden().data(), DType::bf16, {rows, cols}};
  if (quantises_activations(cell().format)) {
    const ScaleGroup group = activation_group(cell().format);
    const ScaleTiles tiles(group, rows, cols);
    codes_.resize(static_cast<size_t>(rows * cols));
    scales_.resize(static_cast<size_t>(tiles.rows * tiles.cols) * 4);
    const TensorView codes(codes_.data(), DType::fp8_e4m3, {rows, cols});
    TensorView scales(scales_.data(), DType::f32, {tiles.rows, tiles.cols});
    if (group == ScaleGroup::row) scales = {scales_.data(), DType::f32, {tiles.rows}};
    quantize(inputs_.cpu(), {.input = host_rows_, .group = group, .output = codes, .scales = scales});
    host_rows_ = codes;
    host_scales_ = scales;
    row_scales_ = group == ScaleGroup::row
                      ? DeviceTensor(context_.device(), DType::f32, {tiles.rows}, 1, scales_.data())
                      : DeviceTensor(context_.device(), DType::f32, {tiles.rows, tiles.cols}, 1, scales_.data());
  }
  rows_ = DeviceTensor(context_.device(), host_rows_.dtype, {rows, cols}, 1, host_rows_.data);
}

DeviceTensor ExpertsStage::spread(const ConstTensorView& made, int count) const {
  const Device device = context_.device();
  DeviceTensor all = made.ndim == 3 ? DeviceTensor(device, made.dtype, {count, made.shape[1], made.shape[2]}, 1)
                                    : DeviceTensor(device, made.dtype, {count, made.shape[1]}, 1);
  const int64_t bytes = all.bytes() / count;
  auto* to = static_cast<std::byte*>(all.view(0).data);
  const gpu::OwnedStream stream(device);
  for (int64_t e = 0; e < count; ++e)
    gpu::copy(to + e * bytes,
              e < made.shape[0] ? static_cast<const std::byte*>(made.data) + e * bytes : to + e % made.shape[0] * bytes,
              bytes, stream.get());
  gpu::synchronize(stream.get());
  return all;
}

void ExpertsStage::place_weights() {
  if (checkpoint_) {
    on_device_ = checkpoint_->on_device();
    return;
  }
  std::vector<int> ids;
  for (int e = 0; e < std::min(kDistinctExperts, num_local_); ++e) ids.push_back(e);
  Model routed = cell().shape;
  routed.shared_intermediate = 0;
  made_ = random_weights(inputs_.cpu(), {routed, cell().format, ids}, cell().seed);
  on_device_ = made_.weights.experts;
  on_device_.num_experts = num_local_;
  const std::array<ConstTensorView*, 6> views{&on_device_.gate_up, &on_device_.gate_up_scales, &on_device_.gate_up_bias,
                                              &on_device_.down,    &on_device_.down_scales,    &on_device_.down_bias};
  for (size_t i = 0; i < views.size(); ++i) {
    if (!views[i]->given()) continue;
    weights_[i] = spread(*views[i], num_local_);
    *views[i] = weights_[i].view(0);
  }
}

ExpertsArgs ExpertsStage::args(int set) const {
  ExpertsArgs args;
  args.weights = on_device_;
  args.activation = cell().shape.activation;
  args.rows = rows_.view(0);
  if (host_scales_.given()) args.row_scales = row_scales_.view(0);
  args.num_topk = cell().shape.routing.num_topk;
  args.sorted_pairs = pairs_.view(set);
  args.expert_counts = counts_.view(set);
  args.expert_offsets = offsets_.view(set);
  args.output = output_.view(set);
  return args;
}

// Part `index` along the first dimension; nothing of nothing.
ConstTensorView one_of(ConstTensorView view, int64_t index) {
  if (!view.given()) return view;
  view.data = static_cast<const std::byte*>(view.data) + size_bytes(view.dtype, index * view.strides[0]);
  view.shape[0] = 1;
  return view;
}

ExpertWeights ExpertsStage::host_expert(int expert) const {
  if (checkpoint_) return checkpoint_->on_host(expert);
  ExpertWeights one = made_.weights.experts;
  one.num_experts = 1;
  for (ConstTensorView* view :
       {&one.gate_up, &one.gate_up_scales, &one.gate_up_bias, &one.down, &one.down_scales, &one.down_bias})
    *view = one_of(*view, expert % made_.weights.experts.num_experts);
  return one;
}

// What experts.reference makes of a row.
std::vector<double> ExpertsStage::expected_row(int expert, int64_t row) const {
  const int64_t hidden = cell().shape.hidden;
  ExpertsArgs args;
  args.weights = host_expert(expert);
  args.activation = cell().shape.activation;
  args.rows = one_of(host_rows_, row);
  args.row_scales = one_of(host_scales_, row);
  std::vector<uint16_t> output(static_cast<size_t>(hidden));
  args.output = {output.data(), DType::bf16, {1, hidden}};
  args.variant = "experts.reference";
  run_experts(inputs_.cpu(), args);
  std::vector<double> values;
  for (const uint16_t value : output) values.push_back(bf16_to_f32(value));
  return values;
}

// A few slots, evenly spread over those that hold pairs.
Correctness ExpertsStage::verify(Stream stream, int set) {
  const SlotTable& table = slots_[static_cast<size_t>(set)];
  const int64_t hidden = cell().shape.hidden;
  const std::vector<std::byte> bytes = output_.fetch(stream, set);
  const auto* got = reinterpret_cast<const uint16_t*>(bytes.data());
  std::vector<std::pair<int, int64_t>> used;  // expert, slot
  for (int e = 0; e < num_local_; ++e)
    for (int64_t i = 0; i < table.counts[static_cast<size_t>(e)]; ++i)
      used.emplace_back(e, table.offsets[static_cast<size_t>(e)] + i);
  double difference = 0, norm = 0;
  const size_t num_checked = std::min<size_t>(used.size(), kCheckedSlots);
  for (size_t i = 0; i < num_checked; ++i) {
    const auto [expert, slot] = used[(2 * i + 1) * used.size() / (2 * num_checked)];
    const int64_t row = table.pairs[static_cast<size_t>(slot)] / cell().shape.routing.num_topk;
    const std::vector<double> want = expected_row(expert, row);
    for (int64_t h = 0; h < hidden; ++h) {
      const double off = bf16_to_f32(got[slot * hidden + h]) - want[static_cast<size_t>(h)];
      difference += off * off;
      norm += want[static_cast<size_t>(h)] * want[static_cast<size_t>(h)];
    }
  }
  Correctness check;
  check.checked_tokens = cell().tokens;
  check.rel_error = norm > 0 ? std::sqrt(difference / norm) : 0;
  check.tolerance = tolerance(cell().format);
  check.passed = check.rel_error <= check.tolerance;  // not of a NaN
  check.reference = "experts.reference";
  return check;
}

int64_t ExpertsStage::touched_weight_bytes() const {
  int64_t touched = 0;
  for (const int32_t count : slots_[0].counts) touched += count > 0;
  Model routed = cell().shape;
  routed.shared_intermediate = 0;
  return std::max<int64_t>(expert_weight_bytes(routed, cell().format, touched), 1);
}

StageWork ExpertsStage::work() const {
  int64_t touched = 0, pairs = 0;
  for (const int32_t count : slots_[0].counts) {
    touched += count > 0;
    pairs += count;
  }
  return work_of(experts_cost(args(0), touched, pairs));
}

}  // namespace

std::vector<std::unique_ptr<DeviceStage>> make_experts_stages(const StageSetup& setup) {
  std::vector<std::unique_ptr<DeviceStage>> stages;
  stages.push_back(std::make_unique<ExpertsStage>(setup));
  return stages;
}

}  // namespace mixlane::bench
