// Align problems, what they must give (groups as lists of pairs, laid out one after the other), and calls for them.
#pragma once

#include <gtest/gtest.h>

#include <optional>

#include "mixlane/align.hpp"
#include "support/random.hpp"

namespace mixlane::test {

inline constexpr int32_t kUntouched = -777;
inline constexpr float kUntouchedWeight = -777.0f;

struct Problem {
  int64_t rows = 0;
  int num_topk = 1;
  int num_experts = 1;
  int num_local_experts = 0;
  int block = 1;
  int num_threads = 1;
  bool wide_ids = false;    // i64
  int64_t row_padding = 0;  // values between the rows of ids and weights
  InvalidIds invalid_ids = InvalidIds::drop;
  int32_t pad_value = -1;
  std::vector<int64_t> ids = {};  // [rows, num_topk]
  std::optional<std::vector<int32_t>> segment_rows = {};
  std::optional<std::vector<int32_t>> expert_map = {};
};

struct Result {
  std::vector<int32_t> pairs, blocks, num_padded, counts, offsets, slots, rows, packed;
  std::vector<float> weights;
  std::vector<uint8_t> zeroed;
  Status status;
};

inline float weight_of(int64_t pair) { return 0.25f * static_cast<float>(pair + 1); }
inline int groups_of(const Problem& p) { return p.num_local_experts ? p.num_local_experts : p.num_experts; }

// What each output must hold; outputs behind the padded end stay untouched.
inline Result expected(const Problem& p, int64_t capacity) {
  const int groups = groups_of(p);
  std::vector<std::vector<int64_t>> members(groups + 1);  // [0] = invalid
  Result r;
  r.slots.assign(p.rows * p.num_topk, kUntouched);
  const int64_t segments = p.segment_rows ? static_cast<int64_t>(p.segment_rows->size()) : 1;
  const int64_t segment_size = p.rows / segments;
  for (int64_t row = 0; row < p.rows; ++row) {
    if (p.segment_rows && row % segment_size >= (*p.segment_rows)[row / segment_size]) continue;
    for (int k = 0; k < p.num_topk; ++k) {
      const int64_t id = p.ids[row * p.num_topk + k];
      int group = -1;
      if (id >= 0 && id < p.num_experts) group = p.expert_map ? (*p.expert_map)[id] : static_cast<int>(id);
      members[group + 1].push_back(row * p.num_topk + k);
      r.slots[row * p.num_topk + k] = -1;
      if (p.invalid_ids == InvalidIds::drop && (id < -1 || id >= p.num_experts)) {
        if (r.status.ok()) r.status = {.code = ErrorCode::bad_expert_id, .token = row, .expected = p.num_experts, .got = id};
        ++r.status.failures;
      }
    }
  }
  const int32_t pad = p.pad_value == -1 ? static_cast<int32_t>(p.rows * p.num_topk) : p.pad_value;
  int32_t kept = 0;
  for (int group = p.invalid_ids == InvalidIds::bucket ? -1 : 0; group < groups; ++group) {
    const auto& list = members[group + 1];
    if (group >= 0) {
      r.counts.push_back(static_cast<int32_t>(list.size()));
      r.offsets.push_back(static_cast<int32_t>(r.pairs.size()));
      kept += static_cast<int32_t>(list.size());
    }
    for (size_t i = 0; i < list.size(); ++i) {
      if (i % p.block == 0) r.blocks.push_back(group);
      r.slots[list[i]] = static_cast<int32_t>(r.pairs.size());
      r.pairs.push_back(static_cast<int32_t>(list[i]));
      r.weights.push_back(weight_of(list[i]));
      r.rows.push_back(static_cast<int32_t>(list[i] / p.num_topk));
      r.packed.push_back(static_cast<int32_t>(list[i] / p.num_topk + ((list[i] % p.num_topk) << 24)));
    }
    while (r.pairs.size() % p.block != 0) {
      r.pairs.push_back(pad);
      r.weights.push_back(0.0f);
      r.rows.push_back(static_cast<int32_t>(p.rows));
      r.packed.push_back(static_cast<int32_t>(p.rows + (static_cast<int64_t>(p.num_topk) << 24)));
    }
  }
  r.offsets.push_back(static_cast<int32_t>(r.pairs.size()));
  r.num_padded = {static_cast<int32_t>(r.pairs.size()), kept};
  EXPECT_LE(static_cast<int64_t>(r.pairs.size()), capacity);
  r.pairs.resize(capacity, kUntouched);
  r.rows.resize(capacity, kUntouched);
  r.packed.resize(capacity, kUntouched);
  r.weights.resize(capacity, kUntouchedWeight);
  r.blocks.resize(capacity / p.block, -1);
  return r;
}

// Buffers and arguments of a call; `extras` gives every optional output as well.
struct Call {
  Result out;
  std::vector<int32_t> ids32;
  std::vector<int64_t> ids64;
  std::vector<float> weights;
  AlignArgs args;

  Call(const Problem& p, bool extras) {
    const int64_t row_size = p.num_topk + p.row_padding;
    ids64.assign(p.rows * row_size + 1, 1'000'000);  // what lies between the rows must not be read
    weights.assign(p.rows * row_size + 1, -1.0f);
    for (int64_t row = 0; row < p.rows; ++row)
      for (int k = 0; k < p.num_topk; ++k) {
        ids64[row * row_size + k] = p.ids[row * p.num_topk + k];
        weights[row * row_size + k] = weight_of(row * p.num_topk + k);
      }
    ids32.assign(ids64.begin(), ids64.end());
    args.topk_ids = p.wide_ids ? ConstTensorView(ids64.data(), DType::i64, {p.rows, p.num_topk})
                               : ConstTensorView(ids32.data(), DType::i32, {p.rows, p.num_topk});
    args.topk_ids.strides[0] = row_size;
    args.topk_weights = ConstTensorView(weights.data(), DType::f32, {p.rows, p.num_topk});
    args.topk_weights.strides[0] = row_size;
    if (p.segment_rows)
      args.segment_rows =
          ConstTensorView(p.segment_rows->data(), DType::i32, {static_cast<int64_t>(p.segment_rows->size())});
    if (p.expert_map) args.expert_map = ConstTensorView(p.expert_map->data(), DType::i32, {p.num_experts});
    args.num_experts = p.num_experts;
    args.num_local_experts = p.num_local_experts;
    args.block = p.block;
    args.invalid_ids = p.invalid_ids;
    args.pad_value = p.pad_value;
    const int64_t groups = groups_of(p), bucket = p.invalid_ids == InvalidIds::bucket ? 1 : 0;
    const int64_t capacity = align_capacity(p.rows * p.num_topk, static_cast<int>(groups + bucket), p.block);
    const auto i32 = [](std::vector<int32_t>& memory, int64_t count) {
      memory.assign(count + 1, kUntouched);
      return TensorView(memory.data(), DType::i32, {count});
    };
    args.sorted_pairs = i32(out.pairs, capacity);
    args.num_padded = i32(out.num_padded, 2);
    args.status = &out.status;
    if (!extras) return;
    args.block_experts = i32(out.blocks, capacity / p.block);
    args.expert_counts = i32(out.counts, groups);
    args.expert_offsets = i32(out.offsets, groups + 1);
    i32(out.slots, p.rows * p.num_topk);
    args.pair_slots = TensorView(out.slots.data(), DType::i32, {p.rows, p.num_topk});
    out.weights.assign(capacity + 1, kUntouchedWeight);
    args.sorted_weights = TensorView(out.weights.data(), DType::f32, {capacity});
    args.sorted_rows = i32(out.rows, capacity);
    if (p.num_topk < 128) args.sorted_packed = i32(out.packed, capacity);
    out.zeroed.assign(1001, 0xee);
    args.zero_fill = TensorView(out.zeroed.data(), DType::bf16, {20, 25});
  }
};

// Every buffer has one element more than its view; it must not be written.
template <class T>
void expect_same(const std::vector<T>& want, std::vector<T> got, T untouched, const char* what) {
  ASSERT_FALSE(got.empty()) << what;
  EXPECT_EQ(got.back(), untouched) << what << ": written behind the end";
  got.pop_back();
  EXPECT_EQ(want, got) << what;
}

// Every output of a finished call.
inline void expect_result(const Result& want, const Result& got, int num_topk, bool extras) {
  expect_same(want.pairs, got.pairs, kUntouched, "sorted_pairs");
  expect_same(want.num_padded, got.num_padded, kUntouched, "num_padded");
  EXPECT_EQ(got.status.code, want.status.code);
  EXPECT_EQ(got.status.token, want.status.token);
  EXPECT_EQ(got.status.failures, want.status.failures);
  EXPECT_EQ(got.status.got, want.status.got);
  EXPECT_EQ(got.status.expected, want.status.expected);
  if (!extras) return;
  expect_same(want.blocks, got.blocks, kUntouched, "block_experts");
  expect_same(want.counts, got.counts, kUntouched, "expert_counts");
  expect_same(want.offsets, got.offsets, kUntouched, "expert_offsets");
  expect_same(want.slots, got.slots, kUntouched, "pair_slots");
  expect_same(want.weights, got.weights, kUntouchedWeight, "sorted_weights");
  expect_same(want.rows, got.rows, kUntouched, "sorted_rows");
  if (num_topk < 128) expect_same(want.packed, got.packed, kUntouched, "sorted_packed");
  std::vector<uint8_t> zeroed(1001, 0);
  zeroed.back() = 0xee;
  EXPECT_EQ(got.zeroed, zeroed);
}

inline testing::Message describe(const Problem& p) {
  return testing::Message() << "rows " << p.rows << " K " << p.num_topk << " E " << p.num_experts << " local "
                            << p.num_local_experts << " block " << p.block << " threads " << p.num_threads << " i64 "
                            << p.wide_ids << " bucket " << (p.invalid_ids == InvalidIds::bucket);
}

inline std::vector<int64_t> random_ids(Rng& rng, int64_t count, int64_t low, int64_t high) {
  std::vector<int64_t> ids(count);
  for (int64_t& id : ids) id = std::uniform_int_distribution<int64_t>(low, high)(rng);
  return ids;
}

inline Problem simple(Rng& rng, int64_t rows, int num_topk, int num_experts, int block) {
  Problem p{.rows = rows, .num_topk = num_topk, .num_experts = num_experts, .block = block};
  p.ids = random_ids(rng, rows * num_topk, 0, num_experts - 1);
  return p;
}

// Any combination of options over awkward shapes.
inline Problem random_problem(Rng& rng) {
  const auto pick = [&](auto... values) {
    const std::common_type_t<decltype(values)...> list[] = {values...};
    return list[rng() % sizeof...(values)];
  };
  Problem p;
  p.num_experts = pick(1, 2, 7, 8, 64, 128, 160, 256, 384, 385, 896, 1000);
  p.num_topk = pick(1, 2, 3, 6, 8, 10, 22, 32, 200);
  p.block = pick(1, 2, 7, 8, 16, 64, 128, 256, 1024);
  const int64_t segments = pick(1, 1, 2, 3, 8);
  p.rows = segments * pick(0, 1, 2, 3, 17, 33, 64);
  p.num_threads = pick(1, 2, 3);
  p.wide_ids = rng() % 2;
  p.row_padding = pick(0, 0, 1, 13);
  p.invalid_ids = rng() % 2 ? InvalidIds::bucket : InvalidIds::drop;
  p.pad_value = pick(-1, 0, 12345);
  const int64_t low = pick(0, -1, -3), high = p.num_experts - 1 + pick(0, 0, 3);
  p.ids = random_ids(rng, p.rows * p.num_topk, low, high);
  if (rng() % 2) {
    p.segment_rows.emplace();
    for (int64_t s = 0; s < segments; ++s) p.segment_rows->push_back(static_cast<int32_t>(rng() % (p.rows / segments + 1)));
  }
  if (rng() % 2) {
    p.num_local_experts = pick(1, 5, 32);
    p.expert_map.emplace(p.num_experts);
    for (int32_t& local : *p.expert_map) local = static_cast<int32_t>(rng() % (p.num_local_experts + 3)) - 3;
    for (int32_t& local : *p.expert_map) local = std::max(local, -1);
  }
  return p;
}

}  // namespace mixlane::test
