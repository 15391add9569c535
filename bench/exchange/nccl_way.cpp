// The baselines: what one writes with collectives alone. Both know the routing on the host before they start, which spares
// them the exchange of counts that a real layer would need.
//   naive     dispatch all-gathers the rows of all ranks with their ids and weights; combine reduce-scatters a row per token
//             of all ranks, in bf16
//   nccl_a2a  dispatch packs the rows of each rank and sends them in an all-to-all of just as many; combine brings a row per
//             (token, rank) back the same way and adds them up
#include <algorithm>
#include <cmath>

#include "core/error.hpp"
#include "core/numeric.hpp"
#include "exchange/device_work.hpp"
#include "exchange/nccl.hpp"
#include "exchange/rank_threads.hpp"
#include "exchange/way.hpp"
#include "ops/dispatch/layout.hpp"

namespace mixlane::bench {
namespace {

constexpr uint8_t kPoison = 0xa5;
constexpr double kTolerance = 0.01;  // of sums rounded to bf16 on the way

// Rows of one array that travel: hidden, scales, ids, weights.
struct Part {
  const gpu::Buffer* from = nullptr;  // [T, bytes]
  int64_t bytes = 0;                  // of a row
  gpu::Buffer packed, received;
};

struct NcclRank {
  std::unique_ptr<Nccl> nccl;
  std::vector<Part> parts;
  std::vector<int64_t> sent, kept;     // rows to and from each rank
  gpu::Buffer pack_index, back_index;  // i32: tokens in the order of `packed`; rows of `returned` per token and rank
  gpu::Buffer partials, returned, output;
};

// rank -> its tokens that have an expert there, in order.
std::vector<std::vector<int32_t>> tokens_by_rank(const ExchangeInputs& inputs, const RankData& data) {
  const DispatcherConfig& config = inputs.config();
  std::vector<std::vector<int32_t>> tokens(static_cast<size_t>(inputs.num_ranks()));
  for (int32_t t = 0; t < data.num_tokens; ++t)
    for (int k = 0; k < config.num_topk; ++k) {
      const int32_t id = data.ids[static_cast<size_t>(t * config.num_topk + k)];
      if (id < 0) continue;
      auto& list = tokens[static_cast<size_t>(config.expert_rank[static_cast<size_t>(id)])];
      if (list.empty() || list.back() != t) list.push_back(t);
    }
  return tokens;
}

class NcclWay : public ExchangeWay {
 public:
  explicit NcclWay(const WayRequest& request)
      : inputs_(request.inputs), case_(request.exchange_case), ranks_(static_cast<size_t>(inputs_.num_ranks())) {
    const NcclId id = Nccl::unique_id();
    for_each_rank(inputs_.num_ranks(), [&](int rank) {
      NcclRank& mine = ranks_[static_cast<size_t>(rank)];
      const RankOnGpu& from = request.gpus[static_cast<size_t>(rank)];
      mine.nccl = std::make_unique<Nccl>(inputs_.num_ranks(), id, rank, from.device);
      list_parts(from, mine);
      mine.output = gpu::Buffer(from.device, inputs_.rank(rank).num_tokens * inputs_.config().hidden * 2);
    });
  }
  ~NcclWay() override {
    for_each_rank(inputs_.num_ranks(), [&](int rank) { ranks_[static_cast<size_t>(rank)].nccl.reset(); });
  }

  int64_t symmetric_bytes() const override { return 0; }

  void poison(int rank, Stream stream) override {
    NcclRank& mine = ranks_[static_cast<size_t>(rank)];
    gpu::fill(mine.output.data(), kPoison, mine.output.bytes(), stream);
    for (const Part& part : mine.parts) gpu::fill(part.received.data(), kPoison, part.received.bytes(), stream);
  }
  double wrong_output(int rank, Stream stream) override {
    const NcclRank& mine = ranks_[static_cast<size_t>(rank)];
    const std::vector<uint16_t> got = fetch_output(mine.output, mine.output.bytes() / 2, stream);
    const std::vector<uint16_t>& expected = inputs_.rank(rank).output[static_cast<int>(case_.rows)];
    double error = 0, norm = 1e-30;
    for (size_t i = 0; i < got.size(); ++i) {
      const double difference = double{bf16_to_f32(got[i])} - bf16_to_f32(expected[i]);
      error += difference * difference;
      norm += double{bf16_to_f32(expected[i])} * bf16_to_f32(expected[i]);
    }
    return std::isfinite(error) ? std::sqrt(error / norm) : 1;
  }
  double output_tolerance() const override { return kTolerance; }

 protected:
  // Rows of all parts that the sources' tokens `order(source)` make, source after source, in the layout of received_bytes().
  template <class Order>
  double wrong_rows(int rank, Stream stream, Order&& order) const;
  // [num_rows, H] bf16 on the rank's device, row i by `fill(i, row)`.
  template <class Fill>
  gpu::Buffer make_rows(Device device, int64_t num_rows, Fill&& fill) const;

  const ExchangeInputs& inputs_;
  ExchangeCase case_;
  std::vector<NcclRank> ranks_;

 private:
  void list_parts(const RankOnGpu& from, NcclRank& mine) const {
    const DispatcherConfig& config = inputs_.config();
    const bool quantized = config.wire != WireFormat::bf16;
    const auto add = [&](const gpu::Buffer& buffer, int64_t bytes) { mine.parts.push_back({&buffer, bytes, {}, {}}); };
    add(quantized ? from.codes : from.hidden, size_bytes(wire_dtype(config.wire), config.hidden));
    if (quantized) add(from.scales, scale_row_bytes(config));
    add(from.ids, config.num_topk * 4);
    add(from.weights, config.num_topk * 4);
  }
};

template <class Fill>
gpu::Buffer NcclWay::make_rows(Device device, int64_t num_rows, Fill&& fill) const {
  const int64_t hidden = inputs_.config().hidden;
  std::vector<uint16_t> rows(static_cast<size_t>(num_rows * hidden), 0);
  for (int64_t i = 0; i < num_rows; ++i) fill(i, rows.data() + i * hidden);
  gpu::Buffer buffer(device, std::max<int64_t>(num_rows * hidden * 2, 16));
  const gpu::OwnedStream stream(device);
  gpu::copy(buffer.data(), rows.data(), num_rows * hidden * 2, stream.get());
  gpu::synchronize(stream.get());
  return buffer;
}

template <class Order>
double NcclWay::wrong_rows(int rank, Stream stream, Order&& order) const {
  int64_t different = 0, compared = 0;
  for (size_t p = 0; p < ranks_[static_cast<size_t>(rank)].parts.size(); ++p) {
    const Part& part = ranks_[static_cast<size_t>(rank)].parts[p];
    std::vector<std::byte> got(static_cast<size_t>(part.received.bytes()));
    gpu::copy(got.data(), part.received.data(), part.received.bytes(), stream);
    gpu::synchronize(stream);
    const std::byte* row = got.data();
    for (int source = 0; source < inputs_.num_ranks(); ++source) {
      const Part& theirs = ranks_[static_cast<size_t>(source)].parts[p];
      std::vector<std::byte> sent(static_cast<size_t>(theirs.from->bytes()));
      gpu::copy(sent.data(), theirs.from->data(), theirs.from->bytes(), stream);
      gpu::synchronize(stream);
      for (const int32_t token : order(source)) {
        for (int64_t b = 0; b < part.bytes; ++b) different += row[b] != sent[static_cast<size_t>(token * part.bytes + b)];
        row += part.bytes;
        compared += part.bytes;
      }
    }
  }
  return compared == 0 ? 0 : static_cast<double>(different) / static_cast<double>(compared);
}

// ---------------------------------------------------------------------------------------------------------------------

class GatherAndReduce final : public NcclWay {
 public:
  explicit GatherAndReduce(const WayRequest& request) : NcclWay(request) {
    const int64_t tokens = inputs_.rank(0).num_tokens, hidden = inputs_.config().hidden;
    for (int r = 0; r < inputs_.num_ranks(); ++r)
      if (inputs_.rank(r).num_tokens != tokens)
        fail(ErrorCode::unsupported, "naive takes as many tokens on all ranks; rank 0 has {}, rank {} has {}", tokens, r,
             inputs_.rank(r).num_tokens);
    for_each_rank(inputs_.num_ranks(), [&](int rank) {
      NcclRank& mine = ranks_[static_cast<size_t>(rank)];
      const Device device = request.gpus[static_cast<size_t>(rank)].device;
      for (Part& part : mine.parts) part.received = gpu::Buffer(device, inputs_.num_ranks() * tokens * part.bytes);
      // A row per token of all ranks; zeros for tokens without an expert here.
      std::vector<const uint16_t*> from(static_cast<size_t>(inputs_.num_ranks() * tokens), nullptr);
      for (int source = 0; source < inputs_.num_ranks(); ++source) {
        int64_t row = int64_t{source} * inputs_.config().capacity;
        const auto sent = tokens_by_rank(inputs_, inputs_.rank(source));
        for (const int32_t token : sent[static_cast<size_t>(rank)])
          from[static_cast<size_t>(source * tokens + token)] = inputs_.rank(rank).reduced_rows.data() + hidden * row++;
      }
      mine.partials = make_rows(device, inputs_.num_ranks() * tokens, [&](int64_t i, uint16_t* row) {
        if (const uint16_t* const values = from[static_cast<size_t>(i)]) std::copy_n(values, hidden, row);
      });
    });
  }
  std::string dispatch_id() const override { return "dispatch.naive"; }
  std::string combine_id() const override { return "combine.naive"; }

  void dispatch(int rank, Stream stream) override {
    const NcclRank& mine = ranks_[static_cast<size_t>(rank)];
    mine.nccl->begin();
    for (const Part& part : mine.parts)
      mine.nccl->all_gather(part.from->data(), part.received.data(), inputs_.rank(rank).num_tokens * part.bytes,
                            NcclType::bytes, stream);
    mine.nccl->end();
  }
  void combine(int rank, Stream stream) override {
    const NcclRank& mine = ranks_[static_cast<size_t>(rank)];
    mine.nccl->reduce_scatter(mine.partials.data(), mine.output.data(),
                              inputs_.rank(rank).num_tokens * inputs_.config().hidden, NcclType::bf16, stream);
  }
  double wrong_received(int rank, Stream stream) override {
    return wrong_rows(rank, stream, [&](int source) {
      std::vector<int32_t> all(static_cast<size_t>(inputs_.rank(source).num_tokens));
      for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int32_t>(i);
      return all;
    });
  }
};

// ---------------------------------------------------------------------------------------------------------------------

class AllToAll final : public NcclWay {
 public:
  explicit AllToAll(const WayRequest& request) : NcclWay(request) {
    for (const Part& part : ranks_[0].parts)
      if (part.bytes % 16 != 0)
        fail(ErrorCode::unsupported, "nccl_a2a packs rows of a multiple of 16 bytes; one of ids, weights or scales has {}",
             part.bytes);
    for_each_rank(inputs_.num_ranks(), [&](int rank) { set_up(rank, request.gpus[static_cast<size_t>(rank)].device); });
  }
  std::string dispatch_id() const override { return "dispatch.nccl_a2a"; }
  std::string combine_id() const override { return "combine.nccl_a2a"; }

  void dispatch(int rank, Stream stream) override {
    const NcclRank& mine = ranks_[static_cast<size_t>(rank)];
    for (const Part& part : mine.parts)
      launch_gather_rows({.from = part.from->as<std::byte>(),
                          .to = part.packed.as<std::byte>(),
                          .index = mine.pack_index.as<int32_t>(),
                          .num_rows = static_cast<int32_t>(sum(mine.sent)),
                          .bytes = part.bytes},
                         stream);
    mine.nccl->begin();
    for (const Part& part : mine.parts) exchange(mine, part.packed, mine.sent, part.received, mine.kept, part.bytes, stream);
    mine.nccl->end();
  }
  void combine(int rank, Stream stream) override {
    const NcclRank& mine = ranks_[static_cast<size_t>(rank)];
    mine.nccl->begin();
    exchange(mine, mine.partials, mine.kept, mine.returned, mine.sent, inputs_.config().hidden * 2, stream);
    mine.nccl->end();
    launch_add_rows({.from = mine.returned.as<uint16_t>(),
                     .to = mine.output.as<uint16_t>(),
                     .index = mine.back_index.as<int32_t>(),
                     .num_rows = static_cast<int32_t>(inputs_.rank(rank).num_tokens),
                     .num_ranks = inputs_.num_ranks(),
                     .hidden = inputs_.config().hidden},
                    stream);
  }
  double wrong_received(int rank, Stream stream) override {
    return wrong_rows(rank, stream,
                      [&](int source) { return tokens_by_rank(inputs_, inputs_.rank(source))[static_cast<size_t>(rank)]; });
  }

 private:
  static int64_t sum(const std::vector<int64_t>& counts) {
    int64_t total = 0;
    for (const int64_t count : counts) total += count;
    return total;
  }

  void exchange(const NcclRank& mine, const gpu::Buffer& from, const std::vector<int64_t>& sent, const gpu::Buffer& to,
                const std::vector<int64_t>& kept, int64_t bytes, Stream stream) const {
    int64_t sent_at = 0, kept_at = 0;
    for (int peer = 0; peer < inputs_.num_ranks(); ++peer) {
      const auto p = static_cast<size_t>(peer);
      if (sent[p] > 0)
        mine.nccl->send(from.as<std::byte>() + sent_at * bytes, sent[p] * bytes, NcclType::bytes, peer, stream);
      if (kept[p] > 0)
        mine.nccl->receive(to.as<std::byte>() + kept_at * bytes, kept[p] * bytes, NcclType::bytes, peer, stream);
      sent_at += sent[p];
      kept_at += kept[p];
    }
  }

  void set_up(int rank, Device device) {
    NcclRank& mine = ranks_[static_cast<size_t>(rank)];
    const RankData& data = inputs_.rank(rank);
    const auto by_rank = tokens_by_rank(inputs_, data);
    std::vector<int32_t> order, back(static_cast<size_t>(data.num_tokens * inputs_.num_ranks()), -1);
    for (int peer = 0; peer < inputs_.num_ranks(); ++peer) {
      const auto p = static_cast<size_t>(peer);
      mine.sent.push_back(static_cast<int64_t>(by_rank[p].size()));
      mine.kept.push_back(data.recv_count[p]);
      for (const int32_t token : by_rank[p]) {
        back[static_cast<size_t>(token * inputs_.num_ranks() + peer)] = static_cast<int32_t>(order.size());
        order.push_back(token);
      }
    }
    mine.pack_index = send_indices(device, order);
    mine.back_index = send_indices(device, back);
    for (Part& part : mine.parts) {
      part.packed = gpu::Buffer(device, std::max<int64_t>(sum(mine.sent) * part.bytes, 16));
      part.received = gpu::Buffer(device, std::max<int64_t>(sum(mine.kept) * part.bytes, 16));
    }
    const int64_t hidden = inputs_.config().hidden;
    std::vector<int64_t> rows;
    for (int source = 0; source < inputs_.num_ranks(); ++source)
      for (int64_t slot = 0; slot < mine.kept[static_cast<size_t>(source)]; ++slot)
        rows.push_back(int64_t{source} * inputs_.config().capacity + slot);
    mine.partials = make_rows(device, static_cast<int64_t>(rows.size()), [&](int64_t i, uint16_t* row) {
      std::copy_n(data.reduced_rows.data() + rows[static_cast<size_t>(i)] * hidden, hidden, row);
    });
    mine.returned = gpu::Buffer(device, std::max<int64_t>(sum(mine.sent) * hidden * 2, 16));
  }

  static gpu::Buffer send_indices(Device device, const std::vector<int32_t>& values) {
    gpu::Buffer buffer(device, std::max<int64_t>(static_cast<int64_t>(values.size()) * 4, 16));
    const gpu::OwnedStream stream(device);
    gpu::copy(buffer.data(), values.data(), static_cast<int64_t>(values.size()) * 4, stream.get());
    gpu::synchronize(stream.get());
    return buffer;
  }
};

void require_possible(const WayRequest& request) {
  if (!Nccl::missing().empty()) fail(ErrorCode::unsupported, "{}", Nccl::missing());
  if (request.inputs.num_ranks() > gpu::num_devices())
    fail(ErrorCode::unsupported, "NCCL takes one rank per GPU; there are {} ranks on {}", request.inputs.num_ranks(),
         gpu::num_devices());
  if (request.exchange_case.rows == CombineRows::pairs)
    fail(ErrorCode::unsupported, "collectives take rows that are reduced before; use --combine-rows reduced");
  if (request.inputs.config().wire != WireFormat::bf16 && request.exchange_case.input == DispatchInput::bf16)
    fail(ErrorCode::unsupported, "collectives take rows as they are: those quantised before (--input wire)");
  if (request.inputs.config().combine_wire != CombineWire::bf16)
    fail(ErrorCode::unsupported, "the baselines' combine carries bf16");
  if (request.inputs.shape().padded_to > 0)
    fail(ErrorCode::unsupported, "collectives take counts from the host; leave out --padded-to");
  if (request.exchange_case.num_multiprocessors != 0)
    fail(ErrorCode::unsupported, "NCCL chooses its multiprocessors itself; use --multiprocessors 0");
}

}  // namespace

std::unique_ptr<ExchangeWay> make_nccl_way(bool all_to_all, const WayRequest& request) {
  require_possible(request);
  if (all_to_all) return std::make_unique<AllToAll>(request);
  return std::make_unique<GatherAndReduce>(request);
}

}  // namespace mixlane::bench
