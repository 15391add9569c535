#include "ops/dispatch/gpu_rank.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "core/math.hpp"
#include "ops/dispatch/gpu/layout.hpp"
#include "support/gpu.hpp"

namespace mixlane::test {
namespace {

// Before the runtime starts: kernels of up to eight ranks wait for each other, and each needs a queue of its own.
const int kManyQueues = setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);

// Fills what may not be relied on to be zero: the rows.
class PoisonedOnGpu final : public Communicator {
 public:
  PoisonedOnGpu(std::shared_ptr<Communicator> inner, int64_t rows_at) : inner_(std::move(inner)), rows_at_(rows_at) {
    set_deadline(inner_->deadline());
  }
  int rank() const override { return inner_->rank(); }
  int num_ranks() const override { return inner_->num_ranks(); }
  std::vector<std::string> all_gather(std::string_view bytes) override { return inner_->all_gather(bytes); }
  std::shared_ptr<SymmetricMemory> allocate(int64_t bytes, std::string_view what, Device device) override {
    auto memory = inner_->allocate(bytes, what, device);
    const gpu::DeviceGuard guard(device);
    const gpu::OwnedStream stream(device);
    gpu::fill(memory->part(rank()) + rows_at_, 0xff, bytes - rows_at_, stream.get());
    gpu::synchronize(stream.get());
    inner_->barrier();
    return memory;
  }

 private:
  std::shared_ptr<Communicator> inner_;
  int64_t rows_at_;
};

int64_t rows_at(const DispatcherConfig& config, int num_ranks) {
  return GpuWindowLayout(completed(config, num_ranks), num_ranks).records_at;
}

int64_t capacity_of(const DispatcherConfig& config) { return config.capacity > 0 ? config.capacity : config.max_tokens; }

}  // namespace

Device device_of_rank(int rank) { return {gpu::kDeviceType, rank % std::max(gpu::num_devices(), 1)}; }

void quantize_row(const uint16_t* row, int hidden, WireFormat wire, std::vector<uint8_t>& codes,
                  std::vector<float>& scales) {
  const int group = wire == WireFormat::fp8_row ? hidden : 128;
  for (int begin = 0; begin < hidden; begin += group) {
    const int end = std::min(hidden, begin + group);
    float amax = 1e-10f;
    for (int h = begin; h < end; ++h) amax = std::max(amax, std::fabs(bf16_to_f32(row[h])));
    scales.push_back(amax / 448.0f);
    for (int h = begin; h < end; ++h) codes.push_back(f32_to_e4m3(bf16_to_f32(row[h]) / scales.back()));
  }
}

GpuRank::GpuRank(std::shared_ptr<Communicator> comm, const DispatcherConfig& config)
    : device_(device_of_rank(comm->rank())),
      context_({.device = device_, .num_threads = 1}),
      stream_(device_),
      num_ranks_(comm->num_ranks()),
      rank_(comm->rank()) {
  const int64_t tokens = config.max_tokens, hidden = config.hidden, topk = config.num_topk;
  const int64_t rows = num_ranks_ * capacity_of(config);
  hidden_ = gpu::Buffer(device_, tokens * hidden * 2);
  scales_ = gpu::Buffer(device_, tokens * ceil_div(hidden, 128) * 4);
  ids_ = gpu::Buffer(device_, tokens * topk * 4);
  weights_ = gpu::Buffer(device_, tokens * topk * 4);
  addend_ = gpu::Buffer(device_, tokens * hidden * 2);
  num_tokens_ = gpu::Buffer(device_, 4);
  expert_rows_ = gpu::Buffer(device_, rows * topk * hidden * 2);
  slots_ = gpu::Buffer(device_, rows * topk * 4);
  reduced_ = gpu::Buffer(device_, rows * hidden * 4);
  output_ = gpu::Buffer(device_, tokens * hidden * 2);
  status_ = gpu::Buffer(device_, sizeof(Status));
  comm_ = std::make_shared<PoisonedOnGpu>(comm, rows_at(config, num_ranks_));
  dispatcher_ = std::make_unique<Dispatcher>(context_, comm_, config);
  static_cast<void>(take_status());
}

void GpuRank::send(const Inputs& inputs, const GpuCall& call) {
  const DispatcherConfig& config = dispatcher_->config();
  if (call.fp8_input && config.wire == WireFormat::mxfp4) {
    std::vector<uint8_t> codes, scales;
    for (int64_t t = 0; t < inputs.num_tokens; ++t)
      quantize_mxfp4(&inputs.hidden[t * config.hidden], config.hidden, codes, scales);
    up(hidden_, codes);
    up(scales_, scales);
  } else if (call.fp8_input) {
    std::vector<uint8_t> codes;
    std::vector<float> scales;
    for (int64_t t = 0; t < inputs.num_tokens; ++t)
      quantize_row(&inputs.hidden[t * config.hidden], config.hidden, config.wire, codes, scales);
    up(hidden_, codes);
    up(scales_, scales);
  } else {
    up(hidden_, inputs.hidden);
  }
  up(ids_, inputs.ids);
  up(weights_, inputs.weights);
  up(addend_, inputs.addend);
  up(num_tokens_, std::vector<int32_t>{static_cast<int32_t>(inputs.num_tokens)});
  gpu::synchronize(stream());
}

DispatchArgs GpuRank::dispatch_args(int64_t num_tokens, const GpuCall& call) {
  const DispatcherConfig& config = dispatcher_->config();
  // With the count on the device the rows behind it are there but do not count.
  if (call.count_on_device) num_tokens = config.max_tokens;
  DispatchArgs args;
  args.hidden = ConstTensorView(hidden_.data(), call.fp8_input ? wire_dtype(config.wire) : DType::bf16,
                                {num_tokens, config.hidden}, device_);
  if (call.fp8_input && config.wire == WireFormat::fp8_row)
    args.scales = ConstTensorView(scales_.data(), DType::f32, {num_tokens}, device_);
  else if (call.fp8_input && config.wire == WireFormat::mxfp4)
    args.scales = ConstTensorView(scales_.data(), DType::e8m0, {num_tokens, ceil_div(config.hidden, 32)}, device_);
  else if (call.fp8_input)
    args.scales = ConstTensorView(scales_.data(), DType::f32, {num_tokens, ceil_div(config.hidden, 128)}, device_);
  args.topk_ids = ConstTensorView(ids_.data(), DType::i32, {num_tokens, config.num_topk}, device_);
  args.topk_weights = ConstTensorView(weights_.data(), DType::f32, {num_tokens, config.num_topk}, device_);
  if (call.count_on_device) args.num_tokens = ConstTensorView(num_tokens_.data(), DType::i32, {1}, device_);
  args.replay = call.replay;
  args.variant = call.variant;
  args.status = status_.as<Status>();
  return args;
}

ReceivedRows GpuRank::fetch(const ReceivedRows& on_device) {
  // First, because a copy to plain memory may keep other ranks' threads out of the runtime while it waits.
  gpu::synchronize(stream());
  const DispatcherConfig& config = dispatcher_->config();
  const int64_t stride = size_bytes(on_device.rows.dtype, on_device.rows.strides[0]);
  window_.resize(static_cast<size_t>(num_ranks_ * config.capacity * stride));
  recv_count_.resize(static_cast<size_t>(num_ranks_));
  gpu::copy(recv_count_.data(), on_device.recv_count.data, num_ranks_ * 4, stream());
  gpu::copy(window_.data(), on_device.rows.data, static_cast<int64_t>(window_.size()), stream());
  gpu::synchronize(stream());
  ReceivedRows rows = on_device;
  const auto* const base = static_cast<std::byte*>(on_device.rows.data);
  for (TensorView* view : {&rows.rows, &rows.scales, &rows.topk_ids, &rows.topk_weights}) {
    if (view->given()) view->data = window_.data() + (static_cast<std::byte*>(view->data) - base);
    view->device = {};
  }
  rows.recv_count = TensorView(recv_count_.data(), DType::i32, {num_ranks_});
  return rows;
}

ReceivedRows GpuRank::dispatch(const Inputs& inputs, const GpuCall& call) {
  send(inputs, call);
  return fetch(dispatcher_->dispatch(dispatch_args(inputs.num_tokens, call), stream()));
}

void GpuRank::send_expert_rows(const ExpertRows& made) {
  up(expert_rows_, made.rows);
  up(slots_, made.slots);
  gpu::fill(output_.data(), 0xff, output_.bytes(), stream());
  gpu::synchronize(stream());
}

CombineArgs GpuRank::combine_args(const RoutingHandle& handle, int64_t num_tokens, int32_t num_rows, bool with_addend) {
  const DispatcherConfig& config = dispatcher_->config();
  CombineArgs args;
  args.handle = handle;
  args.expert_rows = ConstTensorView(expert_rows_.data(), DType::bf16, {num_rows, config.hidden}, device_);
  args.pair_slots =
      ConstTensorView(slots_.data(), DType::i32, {int64_t{num_ranks_} * config.capacity, config.num_topk}, device_);
  if (with_addend) args.addend = ConstTensorView(addend_.data(), DType::bf16, {num_tokens, config.hidden}, device_);
  args.output = TensorView(output_.data(), DType::bf16, {num_tokens, config.hidden}, device_);
  args.status = status_.as<Status>();
  return args;
}

std::vector<uint16_t> GpuRank::fetch_output(int64_t num_tokens) {
  gpu::synchronize(stream());
  std::vector<uint16_t> out(static_cast<size_t>(num_tokens * dispatcher_->config().hidden));
  gpu::copy(out.data(), output_.data(), static_cast<int64_t>(out.size() * 2), stream());
  gpu::synchronize(stream());
  return out;
}

std::vector<uint16_t> GpuRank::combine(const ReceivedRows& received, const Oracle& oracle, bool with_addend,
                                       std::string_view variant) {
  const int64_t num_tokens = oracle.inputs[rank_].num_tokens;
  const ExpertRows made = make_expert_rows(received, oracle, rank_);
  send_expert_rows(made);
  CombineArgs args = combine_args(received.handle, num_tokens, made.count, with_addend);
  args.variant = variant;
  dispatcher_->combine(args, stream());
  return fetch_output(num_tokens);
}

std::vector<uint16_t> GpuRank::combine_reduced(const ReceivedRows& received, const Oracle& oracle, DType dtype,
                                               std::string_view variant, int64_t num_tokens) {
  const DispatcherConfig& config = dispatcher_->config();
  const int64_t hidden = config.hidden, num_rows = int64_t{num_ranks_} * config.capacity;
  const ExpertRows made = make_expert_rows(received, oracle, rank_);
  std::vector<float> sums(static_cast<size_t>(num_rows * hidden), 0.0f);
  for (int64_t row = 0; row < num_rows; ++row) {
    if (row % config.capacity >= received.recv_count.as<int32_t>()[row / config.capacity]) continue;
    const float* const weights = received.topk_weights.as<float>() + row * received.topk_weights.strides[0];
    for (int k = 0; k < config.num_topk; ++k) {
      const int32_t slot = made.slots[row * config.num_topk + k];
      for (int64_t h = 0; slot >= 0 && h < hidden; ++h) {
        const float product = weights[k] * bf16_to_f32(made.rows[slot * hidden + h]);
        sums[row * hidden + h] += product;
      }
    }
  }
  if (dtype == DType::f32)
    up(reduced_, sums);
  else
    up(reduced_, to_bf16(sums));
  gpu::fill(output_.data(), 0xff, output_.bytes(), stream());
  gpu::synchronize(stream());
  if (num_tokens < 0) num_tokens = oracle.inputs[rank_].num_tokens;
  CombineArgs args = combine_args(received.handle, num_tokens, 0, false);
  args.expert_rows = {};
  args.pair_slots = {};
  args.reduced_rows = ConstTensorView(reduced_.data(), dtype, {num_rows, hidden}, device_);
  args.variant = variant;
  dispatcher_->combine(args, stream());
  return fetch_output(num_tokens);
}

Status GpuRank::take_status() {
  Status status;
  const Status ok;
  gpu::synchronize(stream());
  gpu::copy(&status, status_.data(), sizeof(status), stream());
  gpu::synchronize(stream());
  gpu::copy(status_.data(), &ok, sizeof(ok), stream());
  gpu::synchronize(stream());
  return status;
}

}  // namespace mixlane::test
