#include "exchange/way.hpp"

#include <algorithm>

#include "exchange/rank_threads.hpp"
#include "ops/dispatch/layout.hpp"
#include "ops/dispatch/op.hpp"

namespace mixlane::bench {
namespace {

template <class T>
gpu::Buffer on_gpu(Device device, const std::vector<T>& values, Stream stream, int64_t room = 16) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  gpu::Buffer buffer(device, std::max(bytes, room));
  if (bytes > 0) gpu::copy(buffer.data(), values.data(), bytes, stream);
  return buffer;
}

DispatchCounts counts_of(const RankData& data) { return {data.sent_count, data.recv_count}; }

}  // namespace

Device device_of_rank(DeviceType type, int rank) { return {type, rank % std::max(gpu::num_devices(), 1)}; }

std::vector<RankOnGpu> upload(const ExchangeInputs& inputs) {
  std::vector<RankOnGpu> gpus(static_cast<size_t>(inputs.num_ranks()));
  for_each_rank(inputs.num_ranks(), [&](int rank) {
    const RankData& data = inputs.rank(rank);
    const Device device = device_of_rank(gpu::kDeviceType, rank);
    const gpu::OwnedStream stream(device);
    RankOnGpu& to = gpus[static_cast<size_t>(rank)];
    to.device = device;
    const DispatcherConfig& config = inputs.config();
    const int64_t rows = config.max_tokens, pairs = rows * config.num_topk;
    to.hidden = on_gpu(device, data.hidden, stream.get(), rows * config.hidden * 2);
    if (config.wire != WireFormat::bf16)
      to.codes = on_gpu(device, data.codes, stream.get(), size_bytes(wire_dtype(config.wire), rows * config.hidden));
    to.scales = on_gpu(device, data.scales, stream.get(), rows * scale_row_bytes(config));
    to.ids = on_gpu(device, data.ids, stream.get(), pairs * 4);
    to.weights = on_gpu(device, data.weights, stream.get(), pairs * 4);
    to.num_tokens = on_gpu(device, std::vector<int32_t>{static_cast<int32_t>(data.num_tokens)}, stream.get());
    to.reduced_rows = on_gpu(device, data.reduced_rows, stream.get());
    to.expert_rows = on_gpu(device, data.expert_rows, stream.get());
    to.pair_slots = on_gpu(device, data.pair_slots, stream.get());
    gpu::synchronize(stream.get());
  });
  return gpus;
}

std::unique_ptr<ExchangeWay> make_way(const std::string& way, const WayRequest& request) {
  if (way == kNaiveWay || way == kAllToAllWay) return make_nccl_way(way == kAllToAllWay, request);
  return make_library_way(way, request);
}

DType input_dtype(const ExchangeInputs& inputs, const ExchangeCase& exchange_case) {
  return exchange_case.input == DispatchInput::wire ? wire_dtype(inputs.config().wire) : DType::bf16;
}

StageWork dispatch_work(const ExchangeInputs& inputs, const ExchangeCase& exchange_case) {
  std::vector<StageWork> ranks;
  for (int r = 0; r < inputs.num_ranks(); ++r)
    ranks.push_back(work_of(dispatch_cost(inputs.config(), counts_of(inputs.rank(r)), r, inputs.rank(r).num_tokens,
                                          input_dtype(inputs, exchange_case))));
  return worst_rank(ranks);
}

StageWork combine_work(const ExchangeInputs& inputs, const ExchangeCase& exchange_case) {
  std::vector<StageWork> ranks;
  for (int r = 0; r < inputs.num_ranks(); ++r) {
    const RankData& data = inputs.rank(r);
    CombineShape shape;
    shape.num_tokens = data.num_tokens;
    shape.num_rows = data.num_pairs;
    if (exchange_case.rows == CombineRows::reduced) {
      shape.num_rows = 0;
      for (const int32_t count : data.recv_count) shape.num_rows += count;
    }
    ranks.push_back(work_of(combine_cost(inputs.config(), counts_of(data), r, shape)));
  }
  return worst_rank(ranks);
}

double share_different(const std::vector<uint16_t>& got, const std::vector<uint16_t>& expected) {
  if (got.size() != expected.size()) return 1;
  int64_t different = 0;
  for (size_t i = 0; i < got.size(); ++i) different += got[i] != expected[i];
  return got.empty() ? 0 : static_cast<double>(different) / static_cast<double>(got.size());
}

std::vector<uint16_t> fetch_output(const gpu::Buffer& from, int64_t num_values, Stream stream) {
  std::vector<uint16_t> values(static_cast<size_t>(num_values));
  gpu::copy(values.data(), from.data(), num_values * 2, stream);
  gpu::synchronize(stream);
  return values;
}

}  // namespace mixlane::bench
