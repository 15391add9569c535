#include "tune/align_case.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "core/error.hpp"

namespace mixlane::bench {
namespace {

// A window as expert parallelism over eight ranks has it: an id is local with one chance in eight, but each row has one.
constexpr int kWindowRanks = 8;
constexpr int64_t kWindowRowIds = 64;  // ids and what else lies in a row's last cache lines
constexpr double kZipfExponent = 1.2;
// Thousands of keys are timed: as short as the resolution of the clock and the start of a graph allow.
constexpr double kSampleUs = 100;

// Places that the calls of a sample take turns at.
constexpr int kMostPlaces = 4;
constexpr int64_t kBytesOfPlaces = 4 << 20;  // all stay in the second-level cache
constexpr int64_t kPlaceSpacing = 64 << 10;  // at least, and off any power of two
constexpr int64_t kPlaceOffset = 4 << 10;
constexpr int64_t kTokenSpacing = 64;  // keeps ids aligned

// Weights of the experts, largest first.
std::vector<double> popularity(AlignSkew skew, int num_experts) {
  std::vector<double> weights(static_cast<size_t>(num_experts), 1.0);
  if (skew == AlignSkew::zipf)
    for (int e = 0; e < num_experts; ++e) weights[e] = 1.0 / std::pow(e + 1.0, kZipfExponent);
  if (skew == AlignSkew::one_expert) std::fill(weights.begin() + 1, weights.end(), 0.0);
  return weights;
}

class IdSource {
 public:
  IdSource(AlignSkew skew, int num_experts) : skew_(skew), num_experts_(num_experts), order_(num_experts) {
    std::iota(order_.begin(), order_.end(), 0);
    std::shuffle(order_.begin(), order_.end(), rng_);
    const std::vector<double> weights = popularity(skew, num_experts);
    pick_ = std::discrete_distribution<int>(weights.begin(), weights.end());
  }

  // A token's experts; distinct ones where the skew is none.
  void fill(int32_t* ids, int count) {
    if (skew_ == AlignSkew::one_expert) {
      std::fill(ids, ids + count, order_[0]);
      return;
    }
    for (int k = 0; k < count; ++k) {
      do {
        ids[k] = skew_ == AlignSkew::uniform ? static_cast<int32_t>(rng_() % static_cast<uint64_t>(num_experts_))
                                             : order_[pick_(rng_)];
      } while (skew_ == AlignSkew::uniform && count <= num_experts_ && std::find(ids, ids + k, ids[k]) != ids + k);
    }
  }

 private:
  AlignSkew skew_;
  int num_experts_;
  std::mt19937_64 rng_{1};
  std::vector<int32_t> order_;
  std::discrete_distribution<int> pick_;
};

// From a place's bytes to the next one's.
int64_t spacing(int64_t bytes) { return (bytes + kPlaceSpacing - 1) / kPlaceSpacing * kPlaceSpacing + kPlaceOffset; }

gpu::Buffer on_gpu(Device device, const void* data, size_t bytes) {
  gpu::Buffer buffer(device, static_cast<int64_t>(bytes));
  const gpu::OwnedStream stream(device);
  gpu::copy(buffer.data(), data, static_cast<int64_t>(bytes), stream.get());
  gpu::synchronize(stream.get());
  return buffer;
}

void require_same(std::string_view variant, std::string_view what, const std::vector<int32_t>& want,
                  const std::vector<int32_t>& got, size_t count) {
  for (size_t i = 0; i < count; ++i)
    if (want[i] != got[i])
      fail(ErrorCode::internal, "{} is wrong: {}[{}] is {}, align.cpu says {}; nothing was written", variant, what, i,
           got[i], want[i]);
}

}  // namespace

std::string_view name(AlignSkew skew) {
  switch (skew) {
    case AlignSkew::uniform: return "uniform";
    case AlignSkew::zipf: return "zipf:1.2";
    case AlignSkew::one_expert: return "one_expert";
  }
  return "unknown";
}

AlignIdsOnGpu::AlignIdsOnGpu(Device device, const AlignShapeKey& shape, AlignSkew skew, int64_t max_tokens)
    : device_(device), shape_(shape), max_tokens_(max_tokens), num_experts_(shape.experts), row_stride_(shape.topk) {
  if (shape.ids == AlignIds::window) {
    num_experts_ = std::min(shape.experts * kWindowRanks, 65535);
    row_stride_ = std::max<int64_t>(kWindowRowIds, shape.topk);
    map_.assign(num_experts_, -1);
    std::iota(map_.begin(), map_.begin() + shape.experts, 0);
    gpu_map_ = on_gpu(device, map_.data(), map_.size() * 4);
  }
  ids_.assign(static_cast<size_t>(max_tokens * row_stride_), 0);
  IdSource source(skew, num_experts_), local(skew, shape.experts);
  for (int64_t token = 0; token < max_tokens; ++token) {
    int32_t* const row = ids_.data() + token * row_stride_;
    source.fill(row, shape.topk);
    if (shape.ids == AlignIds::window) local.fill(row, 1);
  }
  if (shape.ids == AlignIds::i64) {
    wide_ids_.assign(ids_.begin(), ids_.end());
    gpu_ids_ = on_gpu(device, wide_ids_.data(), wide_ids_.size() * 8);
  } else {
    gpu_ids_ = on_gpu(device, ids_.data(), ids_.size() * 4);
  }
}

AlignArgs AlignIdsOnGpu::inputs(int64_t tokens, bool gpu, int64_t first) const {
  AlignArgs args;
  const bool wide = shape_.ids == AlignIds::i64;
  const void* const host = wide ? static_cast<const void*>(wide_ids_.data()) : ids_.data();
  const auto* const begin = static_cast<const std::byte*>(gpu ? gpu_ids_.data() : host);
  const Device where = gpu ? device_ : Device{};
  args.topk_ids = {
      begin + first * row_stride_ * (wide ? 8 : 4), wide ? DType::i64 : DType::i32, {tokens, shape_.topk}, where};
  args.topk_ids.strides[0] = row_stride_;
  args.num_experts = num_experts_;
  if (!map_.empty()) {
    args.expert_map = {gpu ? gpu_map_.data() : map_.data(), DType::i32, {num_experts_}, where};
    args.num_local_experts = shape_.experts;
  }
  return args;
}

AlignCase::AlignCase(Context& context, const AlignIdsOnGpu& ids, int64_t tokens, int block)
    : context_(context),
      ids_(ids),
      tokens_(tokens),
      block_(block),
      capacity_(align_capacity(tokens * ids.shape().topk, ids.shape().experts, block)),
      num_places_(static_cast<int>(
          std::clamp<int64_t>(std::min(ids.max_tokens() / tokens, kBytesOfPlaces / (capacity_ * 4)), 1, kMostPlaces))),
      pairs_(ids.device(), num_places_ * spacing(capacity_ * 4)),
      blocks_(ids.device(), num_places_ * spacing(capacity_ / block * 4)),
      padded_(ids.device(), num_places_ * spacing(8)) {}

AlignArgs AlignCase::args(std::string_view variant, int place) const {
  const int64_t tokens_apart = ids_.max_tokens() / num_places_ / kTokenSpacing * kTokenSpacing;
  AlignArgs args = ids_.inputs(tokens_, true, place * tokens_apart);
  args.block = block_;
  const auto at_place = [&](const gpu::Buffer& buffer, int64_t count) {
    return TensorView{
        static_cast<std::byte*>(buffer.data()) + place * spacing(count * 4), DType::i32, {count}, ids_.device()};
  };
  args.sorted_pairs = at_place(pairs_, capacity_);
  args.block_experts = at_place(blocks_, capacity_ / block_);
  args.num_padded = at_place(padded_, 2);
  args.variant = variant;
  return args;
}

std::vector<const Variant<AlignArgs>*> AlignCase::candidates() const {
  std::vector<const Variant<AlignArgs>*> fitting;
  for (const auto& variant : align_gpu_variants())
    if (takes(variant, context_, args(variant.info.id))) fitting.push_back(&variant);
  return fitting;
}

void AlignCase::check(Context& cpu, Stream stream) const {
  const auto slots = static_cast<size_t>(capacity_), blocks = static_cast<size_t>(capacity_ / block_);
  std::vector<int32_t> want_pairs(slots), want_blocks(blocks), want_padded(2);
  AlignArgs reference = ids_.inputs(tokens_, false);
  reference.block = block_;
  reference.sorted_pairs = {want_pairs.data(), DType::i32, {capacity_}};
  reference.block_experts = {want_blocks.data(), DType::i32, {capacity_ / block_}};
  reference.num_padded = {want_padded.data(), DType::i32, {2}};
  align(cpu, reference);

  std::vector<int32_t> pairs(slots), got_blocks(blocks), padded(2);
  for (const Variant<AlignArgs>* variant : candidates()) {
    gpu::fill(pairs_.data(), 0xee, pairs_.bytes(), stream);
    gpu::fill(blocks_.data(), 0xee, blocks_.bytes(), stream);
    align(context_, args(variant->info.id), stream);
    gpu::copy(pairs.data(), pairs_.data(), capacity_ * 4, stream);
    gpu::copy(got_blocks.data(), blocks_.data(), capacity_ / block_ * 4, stream);
    gpu::copy(padded.data(), padded_.data(), 8, stream);
    gpu::synchronize(stream);
    require_same(variant->info.id, "num_padded", want_padded, padded, 2);
    require_same(variant->info.id, "sorted_pairs", want_pairs, pairs, static_cast<size_t>(want_padded[0]));
    require_same(variant->info.id, "block_experts", want_blocks, got_blocks, blocks);
  }
}

DeviceWork AlignCase::work(const Variant<AlignArgs>& variant) const {
  std::vector<AlignArgs> places;
  for (int place = 0; place < num_places_; ++place) places.push_back(args(variant.info.id, place));
  return {[this, places, next = size_t{0}](Stream stream, int) mutable {
    align(context_, places[next++ % places.size()], stream);
  }};
}

void refuse_capture(Stream caller) {
  if (gpu::is_capturing(caller))
    fail(ErrorCode::unsupported,
         "tuning while a graph is captured: timing waits for the device; tune before the capture, or load a table");
}

AlignRace::AlignRace(DeviceTimer& timer, const AlignCase& align_case, std::vector<const Variant<AlignArgs>*> candidates)
    : candidates_(candidates.empty() ? align_case.candidates() : std::move(candidates)) {
  for (const auto* candidate : candidates_)
    works_.push_back(timer.prepare(align_case.work(*candidate), {.min_sample_us = kSampleUs}));
}

std::vector<std::string> AlignRace::ids() const {
  std::vector<std::string> all;
  for (const auto* candidate : candidates_) all.emplace_back(candidate->info.id);
  return all;
}

std::string shape_text(const AlignShapeKey& shape) {
  return fmt::format("experts={} topk={} ids={}", shape.experts, shape.topk,
                     align_tune_space().fields[2].words[static_cast<size_t>(shape.ids)]);
}

}  // namespace mixlane::bench
