#include "exchange/inputs.hpp"

#include <algorithm>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "exchange/rank_threads.hpp"
#include "mixlane/quant.hpp"
#include "ops/dispatch/layout.hpp"
#include "ops/dispatch/op.hpp"
#include "workload/random.hpp"

namespace mixlane::bench {
namespace {

constexpr int64_t kMaxBytes = int64_t{8} << 30;  // of a rank's rows
constexpr int64_t kDistinctRows = 256;           // of expert output

DispatcherConfig config_of(const ExchangeShape& shape) {
  DispatcherConfig config;
  config.hidden = shape.model.hidden;
  config.num_topk = shape.model.routing.num_topk;
  config.num_experts = shape.model.routing.num_experts;
  config.max_tokens = std::max(shape.tokens, shape.padded_to);
  config.capacity = shape.capacity;
  config.wire = shape.wire;
  config.combine_wire = shape.combine_wire;
  return completed(config, shape.num_ranks);
}

void append(std::vector<std::byte>& to, const TensorView& view, int64_t row) {
  if (!view.given()) return;
  const auto* const bytes = static_cast<const std::byte*>(view.data) + size_bytes(view.dtype, row * view.strides[0]);
  to.insert(to.end(), bytes, bytes + size_bytes(view.dtype, view.shape[1]));
}

void quantize_rows(Context& cpu, const DispatcherConfig& config, RankData& data) {
  if (config.wire == WireFormat::bf16) return;
  data.codes.resize(static_cast<size_t>(size_bytes(wire_dtype(config.wire), data.num_tokens * config.hidden)));
  data.scales.resize(static_cast<size_t>(data.num_tokens * scale_row_bytes(config)));
  QuantArgs args;
  args.input = ConstTensorView(data.hidden.data(), DType::bf16, {data.num_tokens, config.hidden});
  args.group = scale_group(config.wire);
  args.output = TensorView(data.codes.data(), wire_dtype(config.wire), {data.num_tokens, config.hidden});
  args.scales = scales_view(config, data.scales.data(), data.num_tokens, {});
  quantize(cpu, args);
}

}  // namespace

TensorView scales_view(const DispatcherConfig& config, void* data, int64_t num_tokens, Device device) {
  const WindowLayout layout(config, 1);
  if (config.wire == WireFormat::fp8_row) return TensorView(data, layout.scale_dtype, {num_tokens}, device);
  return TensorView(data, layout.scale_dtype, {num_tokens, layout.num_scales}, device);
}

int64_t scale_row_bytes(const DispatcherConfig& config) {
  const WindowLayout layout(config, 1);
  return size_bytes(layout.scale_dtype, layout.num_scales);
}

std::vector<std::byte> received_bytes(const ReceivedRows& received, const DispatcherConfig& config) {
  std::vector<std::byte> bytes;
  const auto* const counts = received.recv_count.as<int32_t>();
  for (int64_t source = 0; source < received.recv_count.shape[0]; ++source)
    for (int64_t slot = 0; slot < std::clamp(counts[source], 0, config.capacity); ++slot) {
      const int64_t row = source * config.capacity + slot;
      for (const TensorView* part : {&received.rows, &received.scales, &received.topk_ids, &received.topk_weights})
        append(bytes, *part, row);
    }
  return bytes;
}

ExchangeInputs::ExchangeInputs(const ExchangeShape& shape, const std::vector<CombineRows>& rows, Context& cpu)
    : shape_(shape), config_(config_of(shape)), ranks_(static_cast<size_t>(shape.num_ranks)) {
  const int64_t most = num_rows() * config_.hidden * 2;
  if (most > kMaxBytes)
    fail(ErrorCode::unsupported, "received rows of {} tokens on {} ranks take {:.1f} GiB; at most {} GiB are made",
         shape.tokens, shape.num_ranks, static_cast<double>(most) / (1 << 30), kMaxBytes >> 30);
  make_tokens(cpu);
  run_reference(rows);
}

void ExchangeInputs::make_tokens(Context& cpu) {
  WorkloadRequest request;
  request.workload = shape_.workload;
  request.routing = shape_.model.routing;
  request.expert_rank = config_.expert_rank;
  request.num_ranks = shape_.num_ranks;
  request.tokens = shape_.tokens;
  request.seed = shape_.seed;
  const std::vector<int> tokens = rank_tokens(request);
  const std::vector<int32_t> columns = assign_columns(request);
  const int64_t hidden = config_.hidden, topk = config_.num_topk;
  auto column = columns.begin();
  for (int r = 0; r < shape_.num_ranks; ++r) {
    RankData& data = ranks_[static_cast<size_t>(r)];
    data.num_tokens = tokens[static_cast<size_t>(r)];
    Stream64 random(mix_bits(shape_.seed, 0x3e1647 + static_cast<uint64_t>(r)));
    for (int64_t p = 0; p < data.num_tokens * topk; ++p, ++column) {
      data.ids.push_back(*column < config_.num_experts ? *column : -1);
      data.weights.push_back(0.05f + random.uniform());
    }
    data.hidden.resize(static_cast<size_t>(data.num_tokens * hidden));
    parallel_ranges(cpu.num_threads(), data.num_tokens, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        fill_hidden(shape_.seed, r, t, {data.hidden.data() + t * hidden, static_cast<size_t>(hidden)});
    });
    quantize_rows(cpu, config_, data);
  }
}

void ExchangeInputs::make_expert_output(RankData& data, const ReceivedRows& received, int rank, bool pairs) {
  const auto hidden = static_cast<size_t>(config_.hidden);
  std::vector<uint16_t> distinct(static_cast<size_t>(kDistinctRows) * hidden);
  for (int64_t i = 0; i < kDistinctRows; ++i)
    fill_hidden(shape_.seed ^ 0x0e0e, rank, i, {distinct.data() + static_cast<size_t>(i) * hidden, hidden});
  const auto repeat = [&](std::vector<uint16_t>& rows, int64_t count) {
    rows.resize(static_cast<size_t>(count) * hidden);
    for (int64_t row = 0; row < count; ++row)
      std::copy_n(distinct.begin() + static_cast<int64_t>(hidden) * (row % kDistinctRows), hidden,
                  rows.begin() + static_cast<int64_t>(hidden) * row);
  };
  repeat(data.reduced_rows, num_rows());
  if (!pairs) return;
  data.pair_slots.assign(static_cast<size_t>(num_rows() * config_.num_topk), -1);
  for (int64_t row = 0; row < num_rows(); ++row) {
    if (row % config_.capacity >= data.recv_count[static_cast<size_t>(row / config_.capacity)]) continue;
    const auto* const ids = received.topk_ids.as<int32_t>() + row * received.topk_ids.strides[0];
    for (int k = 0; k < config_.num_topk; ++k)
      if (ids[k] >= 0 && config_.expert_rank[static_cast<size_t>(ids[k])] == rank)
        data.pair_slots[static_cast<size_t>(row * config_.num_topk + k)] = static_cast<int32_t>(data.num_pairs++);
  }
  repeat(data.expert_rows, std::max<int64_t>(data.num_pairs, 1));
}

void ExchangeInputs::run_reference(const std::vector<CombineRows>& rows) {
  const auto members = make_thread_group(shape_.num_ranks);
  for_each_rank(shape_.num_ranks, [&](int r) {
    RankData& data = ranks_[static_cast<size_t>(r)];
    const int64_t tokens = data.num_tokens, hidden = config_.hidden, topk = config_.num_topk;
    Context context({.device = {}, .num_threads = 1});
    Dispatcher dispatcher(context, members[static_cast<size_t>(r)], config_);
    DispatchArgs args;
    args.hidden = ConstTensorView(data.hidden.data(), DType::bf16, {tokens, hidden});
    args.topk_ids = ConstTensorView(data.ids.data(), DType::i32, {tokens, topk});
    args.topk_weights = ConstTensorView(data.weights.data(), DType::f32, {tokens, topk});
    const ReceivedRows received = dispatcher.dispatch(args);
    data.recv_count = counts(received.handle).received;
    data.sent_count = counts(received.handle).sent;
    data.received = received_bytes(received, config_);
    make_expert_output(data, received, r, std::find(rows.begin(), rows.end(), CombineRows::pairs) != rows.end());
    for (const CombineRows from : rows) {
      std::vector<uint16_t>& output = data.output[static_cast<int>(from)];
      output.resize(static_cast<size_t>(tokens * hidden));
      CombineArgs combine;
      combine.handle = received.handle;
      if (from == CombineRows::reduced) {
        combine.reduced_rows = ConstTensorView(data.reduced_rows.data(), DType::bf16, {num_rows(), hidden});
      } else {
        combine.expert_rows =
            ConstTensorView(data.expert_rows.data(), DType::bf16, {std::max<int64_t>(data.num_pairs, 1), hidden});
        combine.pair_slots = ConstTensorView(data.pair_slots.data(), DType::i32, {num_rows(), topk});
      }
      combine.output = TensorView(output.data(), DType::bf16, {tokens, hidden});
      dispatcher.combine(combine);
    }
  });
}

std::vector<int64_t> ExchangeInputs::expert_pairs() const {
  std::vector<int64_t> pairs(static_cast<size_t>(config_.num_experts));
  for (const RankData& data : ranks_)
    for (const int32_t id : data.ids)
      if (id >= 0) ++pairs[static_cast<size_t>(id)];
  return pairs;
}

}  // namespace mixlane::bench
