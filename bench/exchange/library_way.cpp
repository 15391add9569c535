// Ways of the library itself: mixlane::Dispatcher with variants by name.
#include <algorithm>

#include "core/error.hpp"
#include "exchange/rank_threads.hpp"
#include "exchange/way.hpp"
#include "ops/dispatch/layout.hpp"
#include "ops/dispatch/op.hpp"

namespace mixlane::bench {
namespace {

constexpr uint8_t kPoison = 0xa5;

// "latency" -> "dispatch.latency"; "auto" where the stage has no such variant.
std::string variant_of(std::string_view stage, const std::string& way, const std::vector<VariantInfo>& variants) {
  const std::string id = fmt::format("{}.{}", stage, way);
  const bool known = std::any_of(variants.begin(), variants.end(), [&](const VariantInfo& each) { return each.id == id; });
  return known ? id : "auto";
}

struct LibraryRank {
  std::unique_ptr<Context> context;
  std::unique_ptr<Dispatcher> dispatcher;
  DispatchArgs dispatch;
  CombineArgs combine;
  gpu::Buffer output, status;
  ReceivedRows received;
};

class LibraryWay final : public ExchangeWay {
 public:
  LibraryWay(const std::string& way, const WayRequest& request)
      : inputs_(request.inputs),
        case_(request.exchange_case),
        dispatch_id_(variant_of("dispatch", way.substr(0, way.find('+')), dispatch_variants())),
        combine_id_(variant_of("combine", way.substr(way.find('+') + 1), combine_variants())),
        ranks_(static_cast<size_t>(inputs_.num_ranks())) {
    DispatcherConfig config = inputs_.config();
    config.num_multiprocessors = case_.num_multiprocessors;
    config.copy_engine = way.find("copy_engine") != std::string::npos;
    symmetric_bytes_ = Dispatcher::window_bytes(config, inputs_.num_ranks(), gpu::kDeviceType);
    const auto members = make_thread_group(inputs_.num_ranks());
    for_each_rank(inputs_.num_ranks(), [&](int rank) {
      members[static_cast<size_t>(rank)]->set_deadline(request.deadline);
      make_rank(members[static_cast<size_t>(rank)], config, request.gpus[static_cast<size_t>(rank)]);
    });
  }
  ~LibraryWay() override {
    for_each_rank(inputs_.num_ranks(), [&](int rank) {
      LibraryRank& mine = ranks_[static_cast<size_t>(rank)];
      mine.received = {};
      mine.dispatcher.reset();  // collective
    });
  }

  std::string dispatch_id() const override { return dispatch_id_ == "auto" ? "dispatch.auto" : dispatch_id_; }
  std::string combine_id() const override { return combine_id_ == "auto" ? "combine.auto" : combine_id_; }
  int64_t symmetric_bytes() const override { return symmetric_bytes_; }

  void dispatch(int rank, Stream stream) override {
    LibraryRank& mine = ranks_[static_cast<size_t>(rank)];
    mine.received = mine.dispatcher->dispatch(mine.dispatch, stream);
  }
  void combine(int rank, Stream stream) override {
    LibraryRank& mine = ranks_[static_cast<size_t>(rank)];
    mine.combine.handle = mine.received.handle;
    mine.dispatcher->combine(mine.combine, stream);
  }

  void poison(int rank, Stream stream) override {
    LibraryRank& mine = ranks_[static_cast<size_t>(rank)];
    gpu::fill(mine.output.data(), kPoison, mine.output.bytes(), stream);
    if (mine.received.rows.given()) gpu::fill(mine.received.rows.data, kPoison, window_bytes(mine.received), stream);
  }
  double wrong_received(int rank, Stream stream) override;
  double wrong_output(int rank, Stream stream) override {
    require_ok(rank, stream);
    const RankData& data = inputs_.rank(rank);
    return share_different(
        fetch_output(ranks_[static_cast<size_t>(rank)].output, data.num_tokens * inputs_.config().hidden, stream),
        data.output[static_cast<int>(case_.rows)]);
  }

 private:
  void make_rank(std::shared_ptr<Communicator> comm, const DispatcherConfig& config, const RankOnGpu& gpu_data);
  void require_ok(int rank, Stream stream);
  int64_t window_bytes(const ReceivedRows& received) const {
    return received.rows.shape[0] * size_bytes(received.rows.dtype, received.rows.strides[0]);
  }

  const ExchangeInputs& inputs_;
  ExchangeCase case_;
  std::string dispatch_id_, combine_id_;
  int64_t symmetric_bytes_ = 0;
  std::vector<LibraryRank> ranks_;
};

void LibraryWay::make_rank(std::shared_ptr<Communicator> comm, const DispatcherConfig& config, const RankOnGpu& from) {
  const RankData& data = inputs_.rank(comm->rank());
  LibraryRank& to = ranks_[static_cast<size_t>(comm->rank())];
  const Device device = from.device;
  const bool padded = inputs_.shape().padded_to > 0;
  const int64_t tokens = padded ? config.max_tokens : data.num_tokens, hidden = config.hidden, topk = config.num_topk;
  to.context = std::make_unique<Context>(ContextOptions{.device = device, .num_threads = 1});
  to.output = gpu::Buffer(device, std::max<int64_t>(tokens * hidden * 2, 16));
  to.status = gpu::Buffer(device, sizeof(Status));
  const Status ok;
  const gpu::OwnedStream stream(device);
  gpu::copy(to.status.data(), &ok, sizeof(ok), stream.get());
  gpu::synchronize(stream.get());
  to.dispatcher = std::make_unique<Dispatcher>(*to.context, std::move(comm), config);
  if (config.copy_engine && !to.context->notices().empty()) {
    to.dispatcher.reset();  // collective
    fail(ErrorCode::unsupported, "{}", to.context->notices().front());
  }

  DispatchArgs& dispatch = to.dispatch;
  dispatch.hidden = ConstTensorView(from.hidden.data(), DType::bf16, {tokens, hidden}, device);
  if (case_.input == DispatchInput::wire && config.wire != WireFormat::bf16) {
    dispatch.hidden = ConstTensorView(from.codes.data(), wire_dtype(config.wire), {tokens, hidden}, device);
    dispatch.scales = scales_view(config, from.scales.data(), tokens, device);
  }
  dispatch.topk_ids = ConstTensorView(from.ids.data(), DType::i32, {tokens, topk}, device);
  dispatch.topk_weights = ConstTensorView(from.weights.data(), DType::f32, {tokens, topk}, device);
  if (padded) dispatch.num_tokens = ConstTensorView(from.num_tokens.data(), DType::i32, {1}, device);
  dispatch.status = to.status.as<Status>();
  dispatch.variant = dispatch_id_;

  CombineArgs& combine = to.combine;
  if (case_.rows == CombineRows::reduced) {
    combine.reduced_rows = ConstTensorView(from.reduced_rows.data(), DType::bf16, {inputs_.num_rows(), hidden}, device);
  } else {
    combine.expert_rows =
        ConstTensorView(from.expert_rows.data(), DType::bf16, {std::max<int64_t>(data.num_pairs, 1), hidden}, device);
    combine.pair_slots = ConstTensorView(from.pair_slots.data(), DType::i32, {inputs_.num_rows(), topk}, device);
  }
  combine.output = TensorView(to.output.data(), DType::bf16, {tokens, hidden}, device);
  combine.status = to.status.as<Status>();
  combine.variant = combine_id_;
}

void LibraryWay::require_ok(int rank, Stream stream) {
  Status status;
  gpu::copy(&status, ranks_[static_cast<size_t>(rank)].status.data(), sizeof(status), stream);
  gpu::synchronize(stream);
  if (!status.ok()) throw Error(status.code, describe(status));
}

double LibraryWay::wrong_received(int rank, Stream stream) {
  require_ok(rank, stream);
  const ReceivedRows& on_device = ranks_[static_cast<size_t>(rank)].received;
  const RankData& data = inputs_.rank(rank);
  std::vector<std::byte> window(static_cast<size_t>(window_bytes(on_device)));
  std::vector<int32_t> recv_count(static_cast<size_t>(inputs_.num_ranks()));
  gpu::copy(window.data(), on_device.rows.data, static_cast<int64_t>(window.size()), stream);
  gpu::copy(recv_count.data(), on_device.recv_count.data, 4 * static_cast<int64_t>(recv_count.size()), stream);
  gpu::synchronize(stream);
  if (recv_count != data.recv_count) return 1;
  ReceivedRows rows = on_device;
  const auto* const base = static_cast<std::byte*>(on_device.rows.data);
  for (TensorView* view : {&rows.rows, &rows.scales, &rows.topk_ids, &rows.topk_weights})
    if (view->given()) view->data = window.data() + (static_cast<std::byte*>(view->data) - base);
  rows.recv_count.data = recv_count.data();
  const std::vector<std::byte> got = received_bytes(rows, inputs_.config());
  if (got.size() != data.received.size()) return 1;
  int64_t different = 0;
  for (size_t i = 0; i < got.size(); ++i) different += got[i] != data.received[i];
  return got.empty() ? 0 : static_cast<double>(different) / static_cast<double>(got.size());
}

}  // namespace

std::unique_ptr<ExchangeWay> make_library_way(const std::string& way, const WayRequest& request) {
  return std::make_unique<LibraryWay>(way, request);
}

}  // namespace mixlane::bench
