// Rank 0's experts on the pairs that the workload gives them: slots as align lays them out, rows as the format wants them.
#include <algorithm>
#include <cmath>
#include <map>

#include "core/numeric.hpp"
#include "mixlane/align.hpp"
#include "ops/experts/op.hpp"
#include "ops/quant/formats.hpp"
#include "ops/quant/op.hpp"
#include "stage/device_tensor.hpp"
#include "stage/op_stage.hpp"
#include "stage/placed_experts.hpp"

namespace mixlane::bench {
namespace {

constexpr int kSlotBlock = 16;  // slots of an expert are padded to it
constexpr int kCheckedRows = 6;

// Sums in another order: activated values that are quantised may fall on the other side of a tie.
double tolerance(QuantFormat format) { return quantises_activations(format) ? 1.5e-2 : 4e-3; }

// One set's slots, on the host.
struct SlotTable {
  std::vector<int32_t> pairs, counts, offsets, pair_slots;
};

// What a call is to do besides.
struct CallKind {
  ExpertsOutput output = ExpertsOutput::pairs;
  bool batch_invariant = false;
};

class ExpertsStage final : public OpStage<ExpertsArgs> {
 public:
  ExpertsStage(const StageSetup& setup, std::shared_ptr<PlacedExperts> experts, CallKind kind);

  std::string options() const override {
    return fmt::format("experts={} block={}{}{}", num_local_, kSlotBlock, sums_tokens() ? " output=tokens" : "",
                       kind_.batch_invariant ? " batch_invariant" : "");
  }
  int num_sets() const override { return num_sets_; }
  ExpertsArgs args(int set) const override;
  void poison(Stream stream, int set) override { output_.poison(stream, set); }
  Correctness verify(Stream stream, int set) override;
  StageWork work() const override;

 private:
  const StageCell& cell() const { return inputs_.cell(); }
  bool sums_tokens() const { return kind_.output == ExpertsOutput::tokens; }
  int64_t num_pairs() const { return int64_t{cell().tokens} * cell().shape.routing.num_topk; }
  int64_t touched_weight_bytes() const;
  SlotTable make_slots(int set) const;
  void quantise_rows();
  struct OutputRow {
    int expert;     // of a slot
    int64_t index;  // slot or token
  };
  // Slots that hold pairs, or tokens.
  std::vector<OutputRow> output_rows(const SlotTable& table) const;
  // What experts.reference makes of a row.
  const std::vector<double>& expected_row(int expert, int64_t row);
  std::vector<double> expected_output(const SlotTable& table, const OutputRow& row);

  StageInputs& inputs_;
  CallKind kind_;
  int num_local_;
  int num_sets_ = 1;
  std::shared_ptr<PlacedExperts> experts_;
  std::vector<std::byte> codes_, scales_;  // of the rows, if they are quantised
  ConstTensorView host_rows_, host_scales_;
  DeviceTensor rows_, row_scales_;
  std::vector<SlotTable> slots_;
  std::vector<float> topk_weights_;  // [tokens, K], of sums
  DeviceTensor pairs_, counts_, offsets_, pair_slots_, pair_weights_, output_;
  std::map<std::pair<int, int64_t>, std::vector<double>> expected_;  // of what has been checked
};

ExpertsStage::ExpertsStage(const StageSetup& setup, std::shared_ptr<PlacedExperts> experts, CallKind kind)
    : OpStage(setup.context, select_experts, run_experts),
      inputs_(setup.inputs),
      kind_(kind),
      num_local_(cell().shape.routing.num_experts / cell().num_ranks),
      experts_(std::move(experts)) {
  quantise_rows();

  slots_.push_back(make_slots(0));
  num_sets_ = setup.num_sets(touched_weight_bytes());
  for (int set = 1; set < num_sets_; ++set) slots_.push_back(make_slots(set));
  const Device device = context_.device();
  const auto capacity = static_cast<int64_t>(slots_[0].pairs.size());
  pairs_ = DeviceTensor(device, DType::i32, {capacity}, num_sets_);
  counts_ = DeviceTensor(device, DType::i32, {num_local_}, num_sets_);
  offsets_ = DeviceTensor(device, DType::i32, {num_local_ + 1}, num_sets_);
  output_ = DeviceTensor(device, DType::bf16, {sums_tokens() ? cell().tokens : capacity, cell().shape.hidden}, num_sets_);
  if (sums_tokens()) {
    const int topk = cell().shape.routing.num_topk;
    pair_slots_ = DeviceTensor(device, DType::i32, {cell().tokens, topk}, num_sets_);
    for (int64_t p = 0; p < num_pairs(); ++p) topk_weights_.push_back(1.0f / static_cast<float>(2 + p % 7));
    pair_weights_ = DeviceTensor(device, DType::f32, {cell().tokens, topk}, 1, topk_weights_.data());
  }
  const gpu::OwnedStream stream(device);
  for (int set = 0; set < num_sets_; ++set) {
    const SlotTable& table = slots_[static_cast<size_t>(set)];
    gpu::copy(pairs_.view(set).data, table.pairs.data(), pairs_.bytes(), stream.get());
    gpu::copy(counts_.view(set).data, table.counts.data(), counts_.bytes(), stream.get());
    gpu::copy(offsets_.view(set).data, table.offsets.data(), offsets_.bytes(), stream.get());
    if (sums_tokens()) gpu::copy(pair_slots_.view(set).data, table.pair_slots.data(), pair_slots_.bytes(), stream.get());
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
  table.pair_slots.resize(static_cast<size_t>(num_pairs()));
  std::vector<int32_t> num_padded(2);
  align(inputs_.cpu(),
        {.topk_ids = {local.data(), DType::i32, {cell().tokens, cell().shape.routing.num_topk}},
         .num_experts = num_local_,
         .block = kSlotBlock,
         .sorted_pairs = {table.pairs.data(), DType::i32, {capacity}},
         .num_padded = {num_padded.data(), DType::i32, {2}},
         .expert_counts = {table.counts.data(), DType::i32, {num_local_}},
         .expert_offsets = {table.offsets.data(), DType::i32, {num_local_ + 1}},
         .pair_slots = {table.pair_slots.data(), DType::i32, {cell().tokens, cell().shape.routing.num_topk}}});
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

ExpertsArgs ExpertsStage::args(int set) const {
  ExpertsArgs args;
  args.weights = experts_->on_device();
  args.activation = cell().shape.activation;
  args.rows = rows_.view(0);
  if (host_scales_.given()) args.row_scales = row_scales_.view(0);
  args.num_topk = cell().shape.routing.num_topk;
  args.sorted_pairs = pairs_.view(set);
  args.expert_counts = counts_.view(set);
  args.expert_offsets = offsets_.view(set);
  args.output = output_.view(set);
  args.batch_invariant = kind_.batch_invariant;
  if (!sums_tokens()) return args;
  args.pair_slots = pair_slots_.view(set);
  args.topk_weights = pair_weights_.view(0);
  return args;
}

const std::vector<double>& ExpertsStage::expected_row(int expert, int64_t row) {
  std::vector<double>& values = expected_[{experts_->distinct_index(expert), row}];
  if (!values.empty()) return values;
  const int64_t hidden = cell().shape.hidden;
  ExpertsArgs args;
  args.weights = experts_->on_host(expert);
  args.activation = cell().shape.activation;
  args.rows = part_of(host_rows_, row);
  args.row_scales = part_of(host_scales_, row);
  std::vector<uint16_t> output(static_cast<size_t>(hidden));
  args.output = {output.data(), DType::bf16, {1, hidden}};
  args.variant = "experts.reference";
  run_experts(inputs_.cpu(), args);
  for (const uint16_t value : output) values.push_back(bf16_to_f32(value));
  return values;
}

std::vector<double> ExpertsStage::expected_output(const SlotTable& table, const OutputRow& row) {
  const int topk = cell().shape.routing.num_topk;
  if (!sums_tokens()) return expected_row(row.expert, table.pairs[static_cast<size_t>(row.index)] / topk);
  std::vector<double> sums(static_cast<size_t>(cell().shape.hidden));
  for (int64_t p = row.index * topk; p < (row.index + 1) * topk; ++p) {
    const int32_t slot = table.pair_slots[static_cast<size_t>(p)];
    if (slot < 0) continue;
    const auto behind = std::upper_bound(table.offsets.begin(), table.offsets.end() - 1, slot);
    const std::vector<double>& values = expected_row(static_cast<int>(behind - table.offsets.begin()) - 1, row.index);
    for (size_t h = 0; h < values.size(); ++h) sums[h] += topk_weights_[static_cast<size_t>(p)] * values[h];
  }
  return sums;
}

std::vector<ExpertsStage::OutputRow> ExpertsStage::output_rows(const SlotTable& table) const {
  std::vector<OutputRow> rows;
  for (int64_t token = 0; sums_tokens() && token < cell().tokens; ++token) rows.push_back({0, token});
  for (int e = 0; !sums_tokens() && e < num_local_; ++e)
    for (int64_t i = 0; i < table.counts[static_cast<size_t>(e)]; ++i)
      rows.push_back({e, table.offsets[static_cast<size_t>(e)] + i});
  return rows;
}

// A few rows, evenly spread.
Correctness ExpertsStage::verify(Stream stream, int set) {
  const SlotTable& table = slots_[static_cast<size_t>(set)];
  const int64_t hidden = cell().shape.hidden;
  std::vector<uint16_t> got(static_cast<size_t>(hidden));
  const std::vector<OutputRow> used = output_rows(table);
  double difference = 0, norm = 0;
  const size_t num_checked = std::min<size_t>(used.size(), kCheckedRows);
  for (size_t i = 0; i < num_checked; ++i) {
    const OutputRow& row = used[(2 * i + 1) * used.size() / (2 * num_checked)];
    const std::vector<double> want = expected_output(table, row);
    gpu::copy(got.data(), output_.view(set).as<uint16_t>() + row.index * hidden, hidden * 2, stream);
    gpu::synchronize(stream);
    for (int64_t h = 0; h < hidden; ++h) {
      const double off = bf16_to_f32(got[static_cast<size_t>(h)]) - want[static_cast<size_t>(h)];
      difference += off * off;
      norm += want[static_cast<size_t>(h)] * want[static_cast<size_t>(h)];
    }
  }
  Correctness check;
  check.checked_tokens = cell().tokens;
  check.rel_error = norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
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
  const StageCell& cell = setup.inputs.cell();
  std::vector<std::unique_ptr<DeviceStage>> stages;
  std::shared_ptr<PlacedExperts> experts = setup.experts;
  if (!experts)
    experts = std::make_shared<RandomExperts>(setup.inputs.cpu(), setup.context.device(), cell.shape, cell.format,
                                              cell.shape.routing.num_experts / cell.num_ranks, cell.seed);
  for (const ExpertsOutput output : setup.options.experts_outputs)
    for (const bool batch_invariant : setup.options.batch_invariant)
      stages.push_back(std::make_unique<ExpertsStage>(setup, experts, CallKind{output, batch_invariant}));
  return stages;
}

std::unique_ptr<OpStage<ExpertsArgs>> make_experts_stage(const StageSetup& setup, std::shared_ptr<PlacedExperts> experts) {
  return std::make_unique<ExpertsStage>(setup, std::move(experts), CallKind{});
}

}  // namespace mixlane::bench
